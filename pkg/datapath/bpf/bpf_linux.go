package bpf

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/sys"
)

// query is the part for BPF_PROG_QUERY of union bpf_attr.
type query struct {
	target          uint32 // a link's index, or a cgroup's file descriptor
	attachType      uint32
	flags           uint32
	_               uint32
	programs        uint64
	count, _        uint32
	programFlags    uint64
	links           uint64
	linkFlags       uint64
	revisionOfLinks uint64
}

// count asks how many programs are attached. A kernel that does not know the place, or does not
// let this process ask, shows none.
func count(q query) (int, error) {
	err := sys.BPF(unix.BPF_PROG_QUERY, unsafe.Pointer(&q), unsafe.Sizeof(q))
	for _, refusal := range []error{unix.EINVAL, unix.ENOSYS, unix.EPERM} {
		if errors.Is(err, refusal) {
			return 0, nil
		}
	}
	return int(q.count), err
}

// TCX is how many programs see the packets that come in or go out by a link, and are not
// attached to a queueing discipline.
func TCX(link int) (n int, err error) {
	for _, at := range []uint32{unix.BPF_TCX_INGRESS, unix.BPF_TCX_EGRESS} {
		here, err := count(query{target: uint32(link), attachType: at})
		if errors.Is(err, unix.ENODEV) { // gone meanwhile
			return 0, nil
		} else if err != nil {
			return 0, err
		}
		n += here
	}
	return n, nil
}

// Connect is how many programs may change where the processes of a cgroup connect to: its own
// programs, and those of the cgroups above it.
func Connect(cgroup string) (n int, err error) {
	dir, err := sys.Open(cgroup)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	return connect(dir)
}

func connect(dir *os.File) (n int, err error) {
	for _, at := range []uint32{unix.BPF_CGROUP_INET4_CONNECT, unix.BPF_CGROUP_INET6_CONNECT} {
		here, err := count(query{target: uint32(dir.Fd()), attachType: at, flags: unix.BPF_F_QUERY_EFFECTIVE})
		if err != nil {
			return 0, err
		}
		n += here
	}
	return n, nil
}
