// SPDX-License-Identifier: Apache-2.0

// runc-devices-only and crun-devices-only are runc and crun for a node whose unified cgroup
// hierarchy lacks controllers.
//
// Where a kernel binds cpu, memory and pids to cgroup v1, the unified hierarchy does not offer
// them, and a runtime refuses a container that asks for them. This takes every resource but the
// device rules out of the bundle's config.json and becomes the runtime of its own name: the device
// filter, which is what devicemount works on, stays wholly real.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	suffix = "-devices-only"
	// Debian 12's crun knows no later one; what is new in later ones, containerd does not ask for
	versionForCrun = `"1.0.2"`
)

type object = map[string]json.RawMessage

func main() {
	name := filepath.Base(os.Args[0])
	if err := run(strings.TrimSuffix(name, suffix), os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func run(runtime string, args []string) error {
	if bundle, creates := bundleOf(args); creates {
		if err := adapt(filepath.Join(bundle, "config.json"), runtime); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program := filepath.Join(filepath.Dir(self), runtime)
	return syscall.Exec(program, append([]string{program}, args...), os.Environ())
}

// bundleOf returns the bundle of a command that makes a container.
func bundleOf(args []string) (string, bool) {
	bundle, creates := ".", false
	for i, arg := range args {
		switch {
		case arg == "create" || arg == "run":
			creates = true
		case (arg == "--bundle" || arg == "-b") && i+1 < len(args):
			bundle = args[i+1]
		case strings.HasPrefix(arg, "--bundle="):
			bundle = strings.TrimPrefix(arg, "--bundle=")
		}
	}
	return bundle, creates
}

func adapt(path, runtime string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config object
	if err := json.Unmarshal(content, &config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if runtime == "crun" {
		config["ociVersion"] = json.RawMessage(versionForCrun)
	}
	if err := keepDevicesOnly(config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if content, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}

func keepDevicesOnly(config object) error {
	var linux, resources object
	if err := json.Unmarshal(config["linux"], &linux); err != nil {
		return fmt.Errorf("linux: %w", err)
	}
	if linux["resources"] == nil {
		return nil
	}
	if err := json.Unmarshal(linux["resources"], &resources); err != nil {
		return fmt.Errorf("linux: resources: %w", err)
	}
	kept := object{}
	if devices, found := resources["devices"]; found {
		kept["devices"] = devices
	}
	var err error
	if linux["resources"], err = json.Marshal(kept); err != nil {
		return err
	}
	config["linux"], err = json.Marshal(linux)
	return err
}
