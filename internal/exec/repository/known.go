package repository

import (
	"slices"
	"strings"

	"github.com/nasfleet/nasfleet/messages"
)

// known are the mount options that a command may give for a type of file system, in lower case.
type known struct {
	// flags have no value, values may have one, which is no path of this host.
	flags, values []string
	// remote are those of values that may hold a path on the server.
	remote []string
	// files name a file of this host, which has to lie where the host allows it.
	files []string
}

func words(s string) []string { return strings.Fields(s) }

// knownOf returns the options for a type: of mount(8), nfs(5), mount.cifs(8), mount.ceph(8), sshfs(1) and
// ssh_config(5), ext4(5), xfs(5) and btrfs(5), those that are of use here and cannot do harm.
func knownOf(fsType string) known {
	k := ofType(fsType)
	k.flags = append(k.flags, words(`
		ro rw sync async dirsync atime noatime relatime norelatime strictatime nostrictatime diratime nodiratime
		lazytime nolazytime nosymfollow silent loud nofail auto noauto nouser _netdev`)...)
	return k
}

func ofType(fsType string) known {
	switch fsType {
	case "nfs", "nfs4":
		return known{
			flags: words(`hard soft softerr fg intr nointr ac noac cto nocto lock nolock acl noacl rdirplus nordirplus
				sharecache nosharecache resvport noresvport migration nomigration fsc nofsc tcp udp rdma
				trunkdiscovery notrunkdiscovery softreval nosoftreval`),
			values: words(`vers nfsvers minorversion proto port timeo retrans rsize wsize acregmin acregmax acdirmin
				acdirmax actimeo retry sec lookupcache local_lock nconnect max_connect clientaddr mountport mountproto
				mounthost mountvers namlen write xprtsec`),
		}
	case "cifs", "smb3":
		return known{
			flags: words(`guest seal sign soft hard noperm perm serverino noserverino nobrl brl mapposix mapchars nomapchars
				nohandlecache handlecache nostrictsync strictsync persistenthandles nopersistenthandles resilienthandles
				noresilienthandles multichannel nomultichannel mfsymlinks posix noposix unix nounix rdma nosharesock
				nocase forceuid forcegid noforceuid noforcegid dynperm nodynperm sfu nodfs nolease compress`),
			values: words(`vers user username domain dom workgroup sec uid gid cruid file_mode dir_mode port ip addr
				cache rsize wsize bsize actimeo acregmax acdirmax closetimeo iocharset echo_interval max_channels
				max_credits handletimeout retrans prefixpath netbiosname servern snapshot esize min_enc_offload`),
			remote: words(`prefixpath`),
			files:  words(`credentials cred`),
		}
	case "ceph":
		return known{
			flags: words(`rbytes norbytes dirstat nodirstat dcache nodcache asyncreaddir noasyncreaddir crc nocrc share noshare
				noquotadf quotadf copyfrom nocopyfrom wsync nowsync acl noacl require_active_mds norequire_active_mds`),
			values: words(`name fs mds_namespace mon_addr ms_mode ip fsid rsize wsize rasize caps_max
				caps_wanted_delay_min caps_wanted_delay_max readdir_max_entries readdir_max_bytes write_congestion_kb
				mount_timeout osdkeepalive osdtimeout osd_idle_ttl recover_session`),
			// Several monitors are set apart by slashes.
			remote: words(`mon_addr`),
			files:  words(`secretfile conf`),
		}
	case "sshfs", "fuse.sshfs":
		return known{
			flags: words(`reconnect kernel_cache auto_cache noauto_cache direct_io default_permissions
				disable_hardlink follow_symlinks transform_symlinks no_check_root sshfs_sync sync_readdir no_readahead
				noforget hard_remove`),
			values: words(`port directport batchmode serveraliveinterval serveralivecountmax tcpkeepalive connecttimeout
				connectionattempts ciphers macs kexalgorithms hostkeyalgorithms pubkeyacceptedalgorithms
				pubkeyacceptedkeytypes casignaturealgorithms compression addressfamily stricthostkeychecking
				hostkeyalias checkhostip hashknownhosts updatehostkeys verifyhostkeydns preferredauthentications
				pubkeyauthentication passwordauthentication kbdinteractiveauthentication gssapiauthentication
				hostbasedauthentication identitiesonly numberofpasswordprompts rekeylimit ipqos bindaddress loglevel
				idmap uid gid umask max_conns max_read max_write cache workaround
				dcache_timeout dcache_stat_timeout dcache_link_timeout dcache_dir_timeout dcache_max_size
				dir_cache entry_timeout attr_timeout negative_timeout ac_attr_timeout`),
			files: words(`identityfile certificatefile userknownhostsfile globalknownhostsfile`),
		}
	case "ext2", "ext3", "ext4":
		return known{
			flags:  words(`loop discard nodiscard acl noacl user_xattr nouser_xattr noload norecovery delalloc nodelalloc nobarrier auto_da_alloc noauto_da_alloc`),
			values: words(`barrier commit data errors stripe resuid resgid`),
		}
	case "xfs":
		return known{
			flags:  words(`loop discard nodiscard inode32 inode64 largeio nolargeio norecovery nouuid swalloc wsync noquota`),
			values: words(`allocsize logbufs logbsize sunit swidth`),
		}
	case "btrfs":
		return known{
			flags:  words(`loop nodiscard acl noacl autodefrag noautodefrag barrier nobarrier datacow nodatacow datasum nodatasum degraded ssd nossd`),
			values: words(`commit compress compress-force discard space_cache subvol subvolid thread_pool`),
			remote: words(`subvol`), // in the file system that is mounted
		}
	}
	return known{flags: words(`loop`)}
}

// remote tells the file systems whose address names nothing of this host.
func remote(fsType string) bool {
	return slices.Contains([]string{
		"nfs", "nfs4", "cifs", "smb3", "ceph", "sshfs", "fuse.sshfs", "glusterfs", "lustre", "beegfs", "afs", "davfs", "9p", "virtiofs",
	}, fsType)
}

// OfHost returns what a repository names of this host: the file, device or folder that is mounted, "" for none; and the
// files of its mount options. Only an absolute path says by itself what it names.
func OfHost(spec messages.Repository) (address string, files []string) {
	program, fuse := fuseProgram(spec.Type)
	switch {
	case remote(spec.Type):
	case fuse && program != "" && !strings.HasPrefix(spec.Address, "/"):
	default:
		address = spec.Address
	}
	k := knownOf(spec.Type)
	for o := range strings.SplitSeq(spec.MountOptions, ",") {
		if name, value, _ := strings.Cut(o, "="); slices.Contains(k.files, strings.ToLower(name)) {
			files = append(files, value)
		}
	}
	return address, files
}
