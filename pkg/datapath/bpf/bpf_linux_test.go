package bpf

import (
	"net"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/internal/sys"
)

// load loads a program that lets everything pass.
func load(t *testing.T, programType, attachType uint32, result int32) int {
	t.Helper()
	program := []struct {
		code, registers uint8
		offset          int16
		immediate       int32
	}{{code: unix.BPF_ALU64 | unix.BPF_MOV, immediate: result}, {code: unix.BPF_JMP | unix.BPF_EXIT}}
	license := []byte("GPL\x00")
	attributes := struct {
		programType, count    uint32
		instructions, license uint64
		logLevel, logSize     uint32
		log                   uint64
		version, flags        uint32
		name                  [16]byte
		link, attachType      uint32
	}{programType: programType, count: uint32(len(program)), instructions: uint64(uintptr(unsafe.Pointer(&program[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))), attachType: attachType}
	return create(t, unix.BPF_PROG_LOAD, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
}

// attach attaches a program, until the test ends.
func attach(t *testing.T, program int, target, attachType uint32) {
	t.Helper()
	attributes := struct {
		program, target, attachType, flags uint32
		_                                  [4]uint64
	}{program: uint32(program), target: target, attachType: attachType}
	create(t, unix.BPF_LINK_CREATE, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
}

func create(t *testing.T, command uintptr, attributes unsafe.Pointer, size uintptr) int {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attributes), size)
	if errno != 0 {
		t.Fatalf("bpf %d: %v", command, errno)
	}
	t.Cleanup(func() { unix.Close(int(fd)) })
	return int(fd)
}

func TestTCX(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	ns.Veth("uplink", nettest.New(t), "lan")
	ns.Run(func() {
		uplink, err := net.InterfaceByName("uplink")
		if err != nil {
			t.Fatal(err)
		}
		want := func(want int) {
			t.Helper()
			if n, err := TCX(uplink.Index); err != nil || n != want {
				t.Errorf("%d programs, want %d: %v", n, want, err)
			}
		}
		want(0)
		const pass = -1 // TCX_NEXT
		attach(t, load(t, unix.BPF_PROG_TYPE_SCHED_CLS, 0, pass), uint32(uplink.Index), unix.BPF_TCX_INGRESS)
		want(1)
		attach(t, load(t, unix.BPF_PROG_TYPE_SCHED_CLS, 0, pass), uint32(uplink.Index), unix.BPF_TCX_EGRESS)
		want(2)
		if n, err := TCX(1 << 20); n != 0 || err != nil {
			t.Errorf("without a link: %d, %v", n, err)
		}
	})
}

// TestConnect: the programs of a cgroup above count too.
func TestConnect(t *testing.T) {
	t.Parallel()
	var fs unix.Statfs_t
	root := "/sys/fs/cgroup"
	if err := unix.Statfs(root, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		root += "/unified"
	}
	above, err := os.MkdirTemp(root, "flock-test-")
	if err != nil {
		t.Skip("no cgroups of version 2 to make one in: ", err)
	}
	t.Cleanup(func() { os.Remove(above) })
	below := above + "/below"
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(below) })
	before, err := Connect(below)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := sys.Open(above)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	attach(t, load(t, unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, unix.BPF_CGROUP_INET4_CONNECT, 1), uint32(dir.Fd()), unix.BPF_CGROUP_INET4_CONNECT)
	if n, err := Connect(below); err != nil || n != before+1 {
		t.Errorf("%d programs, want %d: %v", n, before+1, err)
	}
	if _, err := Connect(t.TempDir()); err == nil {
		t.Error("a directory that is no cgroup has no error")
	}
}
