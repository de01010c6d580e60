// SPDX-License-Identifier: Apache-2.0

// nvidia-cdi writes the CDI spec that NVIDIA's own device plugin would write on a made-up machine.
//
// The spec is the work of NVIDIA's nvcdi package with the mock NVML of go-nvml: what is given here is
// only which GPUs and MIG instances there are. Device files, libraries and MIG minors are looked up
// where nvcdi looks them up, so it runs inside the node that has the stand-ins.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	mockserver "github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
)

const sliceMemoryMB = 10 * 1024 // of a MIG instance, profile 1g.10gb

type machine struct {
	Vendor     string `json:"vendor"` // of the CDI kind: the device plugin has its own
	DriverRoot string `json:"driverRoot"`
	Hook       string `json:"hook"` // path of nvidia-cdi-hook
	Driver     string `json:"driver"`
	GPUs       []gpu  `json:"gpus"`
}

type gpu struct {
	UUID     string `json:"uuid"`
	Minor    int    `json:"minor"`
	PCIBusID string `json:"pciBusID"`
	MIG      []mig  `json:"mig"`
}

type mig struct {
	UUID            string `json:"uuid"`
	GPUInstance     int    `json:"gpuInstance"`
	ComputeInstance int    `json:"computeInstance"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "nvidia-cdi:", err)
		os.Exit(1)
	}
}

func run() error {
	var wanted machine
	if err := json.NewDecoder(os.Stdin).Decode(&wanted); err != nil {
		return fmt.Errorf("the machine on standard input: %w", err)
	}
	server, err := mockserver.New(
		mockserver.WithGPUs(gpus.Multiple(len(wanted.GPUs), gpus.H100_SXM5_80GB)...),
		mockserver.WithDriverVersion(wanted.Driver),
	)
	if err != nil {
		return err
	}
	byUUID := map[string]nvml.Device{}
	for index, described := range wanted.GPUs {
		if err := describe(server.Devices[index].(*mockserver.Device), index, described, byUUID); err != nil {
			return err
		}
	}
	server.DeviceGetHandleByUUIDFunc = func(uuid string) (nvml.Device, nvml.Return) {
		if device, found := byUUID[uuid]; found {
			return device, nvml.SUCCESS
		}
		return nil, nvml.ERROR_NOT_FOUND
	}
	return write(server, wanted)
}

// describe makes a device of the mock the described one; what the mock leaves unset would panic.
func describe(device *mockserver.Device, index int, described gpu, byUUID map[string]nvml.Device) error {
	device.UUID, device.Minor = described.UUID, described.Minor
	device.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return address(described.PCIBusID), nvml.SUCCESS }
	device.GetIndexFunc = func() (int, nvml.Return) { return index, nvml.SUCCESS }
	device.IsMigDeviceHandleFunc = func() (bool, nvml.Return) { return false, nvml.SUCCESS }
	device.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return len(described.MIG), nvml.SUCCESS }
	if len(described.MIG) > 0 {
		device.MigMode = nvml.DEVICE_MIG_ENABLE
	}
	byUUID[described.UUID] = device
	slices := map[int]nvml.GpuInstance{}
	device.GetGpuInstanceByIdFunc = func(id int) (nvml.GpuInstance, nvml.Return) {
		if slice, found := slices[id]; found {
			return slice, nvml.SUCCESS
		}
		return nil, nvml.ERROR_NOT_FOUND
	}
	instances := make([]nvml.Device, len(described.MIG))
	for number, one := range described.MIG {
		slice, err := cut(device)
		if err != nil {
			return err
		}
		slices[one.GPUInstance] = slice
		instances[number] = newInstance(device, number, one)
		byUUID[one.UUID] = instances[number]
	}
	device.GetMigDeviceHandleByIndexFunc = func(number int) (nvml.Device, nvml.Return) {
		if number >= len(instances) {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return instances[number], nvml.SUCCESS
	}
	return nil
}

func address(text string) nvml.PciInfo {
	var info nvml.PciInfo
	for place, character := range []byte(text) {
		info.BusId[place] = int8(character)
	}
	return info
}

// cut returns a GPU instance of one slice with one compute instance in it.
func cut(device *mockserver.Device) (nvml.GpuInstance, error) {
	profile, result := device.GetGpuInstanceProfileInfo(nvml.GPU_INSTANCE_PROFILE_1_SLICE)
	if result != nvml.SUCCESS {
		return nil, result
	}
	made, result := device.CreateGpuInstance(&profile)
	if result != nvml.SUCCESS {
		return nil, result
	}
	shape, result := made.GetComputeInstanceProfileInfo(
		nvml.COMPUTE_INSTANCE_PROFILE_1_SLICE, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
	if result != nvml.SUCCESS {
		return nil, result
	}
	inside, result := made.CreateComputeInstance(&shape)
	if result != nvml.SUCCESS {
		return nil, result
	}
	slice := made.(*mockserver.GpuInstance)
	slice.GetComputeInstanceByIdFunc = func(int) (nvml.ComputeInstance, nvml.Return) {
		return inside, nvml.SUCCESS
	}
	return slice, nil
}

func newInstance(parent *mockserver.Device, number int, described mig) nvml.Device {
	return &mock.Device{
		IsMigDeviceHandleFunc: func() (bool, nvml.Return) { return true, nvml.SUCCESS },
		GetDeviceHandleFromMigDeviceHandleFunc: func() (nvml.Device, nvml.Return) {
			return parent, nvml.SUCCESS
		},
		GetIndexFunc:             func() (int, nvml.Return) { return number, nvml.SUCCESS },
		GetUUIDFunc:              func() (string, nvml.Return) { return described.UUID, nvml.SUCCESS },
		GetGpuInstanceIdFunc:     func() (int, nvml.Return) { return described.GPUInstance, nvml.SUCCESS },
		GetComputeInstanceIdFunc: func() (int, nvml.Return) { return described.ComputeInstance, nvml.SUCCESS },
		GetAttributesFunc: func() (nvml.DeviceAttributes, nvml.Return) {
			return nvml.DeviceAttributes{MemorySizeMB: sliceMemoryMB}, nvml.SUCCESS
		},
	}
}

func write(server *mockserver.Server, wanted machine) error {
	byUUID, err := nvcdi.NewDeviceNamer(nvcdi.DeviceNameStrategyUUID)
	if err != nil {
		return err
	}
	library, err := nvcdi.New(
		nvcdi.WithMode(nvcdi.ModeNvml),
		nvcdi.WithNvmlLib(server),
		nvcdi.WithDriverRoot(wanted.DriverRoot),
		nvcdi.WithDevRoot("/"),
		nvcdi.WithNVIDIACDIHookPath(wanted.Hook),
		nvcdi.WithDeviceNamers(byUUID),
		nvcdi.WithVendor(wanted.Vendor),
		nvcdi.WithClass("gpu"),
	)
	if err != nil {
		return err
	}
	spec, err := library.GetSpec()
	if err != nil {
		return err
	}
	_, err = spec.WriteTo(os.Stdout)
	return err
}
