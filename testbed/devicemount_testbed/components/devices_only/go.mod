module testbed/devices_only

go 1.24
