package hypervisor

import (
	"context"
	"slices"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// PoolFolders lists the folders of libvirt's active storage pools, which hold nothing but what VMs may use. The
// error has the code CodeHypervisorDown.
func (h *Hypervisor) PoolFolders(ctx context.Context) ([]string, error) {
	return call(ctx, h, func(conn *libvirt.Connect) (folders []string, err error) {
		pools, err := conn.ListAllStoragePools(libvirt.CONNECT_LIST_STORAGE_POOLS_ACTIVE)
		if is(err, libvirt.ERR_NO_SUPPORT) {
			return nil, nil // a libvirt without storage pools
		}
		for i := range pools {
			defer func() { _ = pools[i].Free() }()
			// One that has gone meanwhile is none.
			if xml, err := pools[i].GetXMLDesc(0); err == nil {
				folders = append(folders, poolFolder(xml)...)
			}
		}
		return folders, err
	}, nil)
}

// poolFolder returns the folder of a pool of files, nothing for other pools.
func poolFolder(definition string) []string {
	var pool libvirtxml.StoragePool
	files := []string{"dir", "fs", "netfs"}
	if pool.Unmarshal(definition) != nil || !slices.Contains(files, pool.Type) || pool.Target == nil || pool.Target.Path == "" {
		return nil
	}
	return []string{pool.Target.Path}
}
