module testbed/runc_devices_only

go 1.24
