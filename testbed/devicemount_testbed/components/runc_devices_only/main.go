// SPDX-License-Identifier: Apache-2.0

// runc-devices-only is runc for a node whose unified cgroup hierarchy lacks controllers.
//
// Where a kernel binds cpu, memory and pids to cgroup v1, the unified hierarchy does not offer
// them, and runc refuses a container that asks for them. This takes every resource but the
// device rules out of the bundle's config.json and becomes runc: the device filter, which is
// what devicemount works on, stays wholly real.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "runc-devices-only:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if bundle, creates := bundleOf(args); creates {
		if err := keepDevicesOnly(filepath.Join(bundle, "config.json")); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runc := filepath.Join(filepath.Dir(self), "runc")
	return syscall.Exec(runc, append([]string{runc}, args...), os.Environ())
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

func keepDevicesOnly(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config, linux, resources map[string]json.RawMessage
	if err := json.Unmarshal(content, &config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := json.Unmarshal(config["linux"], &linux); err != nil {
		return fmt.Errorf("%s: linux: %w", path, err)
	}
	if linux["resources"] == nil {
		return nil
	}
	if err := json.Unmarshal(linux["resources"], &resources); err != nil {
		return fmt.Errorf("%s: resources: %w", path, err)
	}
	kept := map[string]json.RawMessage{}
	if devices, found := resources["devices"]; found {
		kept["devices"] = devices
	}
	if linux["resources"], err = json.Marshal(kept); err != nil {
		return err
	}
	if config["linux"], err = json.Marshal(linux); err != nil {
		return err
	}
	if content, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}
