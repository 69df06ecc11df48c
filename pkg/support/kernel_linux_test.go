package support

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// TestThisKernel: the kernel that the tests run on has all that breaks flock, twice.
func TestThisKernel(t *testing.T) {
	for range 2 {
		found, err := Kernel()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if f.Breaks {
				t.Error(f)
			}
			t.Log(f)
		}
	}
}

// TestEachFeatureMissing: a kernel that refuses one feature as kernels without it do is
// found to lack that one, and no other.
func TestEachFeatureMissing(t *testing.T) {
	here, err := Kernel()
	if err != nil {
		t.Fatal(err)
	}
	for _, lacking := range features {
		for _, errno := range []unix.Errno{unix.EOPNOTSUPP, unix.ENOENT, unix.EPROTONOSUPPORT} {
			t.Run(lacking.name+" "+unix.ErrnoName(errno), func(t *testing.T) {
				t.Parallel()
				found, err := tryKernel(func(f feature, k *trial) error {
					if f.name == lacking.name {
						return fmt.Errorf("refused: %w", &netlink.Error{Errno: errno})
					}
					return f.try(k)
				})
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(found, func(f Finding) bool { return f.Needed == lacking.name })
				if i < 0 {
					t.Fatalf("found %v", found)
				}
				f := found[i]
				whole(t, f)
				if f.Breaks != lacking.breaks || !strings.Contains(f.Found, Release()) || !strings.Contains(f.Found, errno.Error()) {
					t.Errorf("%+v", f)
				}
				if others := len(found) - 1; others > len(here) {
					t.Errorf("found %v besides", found)
				}
			})
		}
	}
}

// TestNoPermission: what says nothing of the kernel is an error, and no finding.
func TestNoPermission(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EPERM, unix.ENOMEM, unix.EBUSY} {
		if found, err := tryKernel(func(feature, *trial) error { return errno }); !errors.Is(err, errno) || len(found) > 0 {
			t.Errorf("%v: %v, %v", errno, found, err)
		}
	}
}

// TestWithoutTables: on a kernel without nf_tables each of its features is missing, and
// nothing fails.
func TestWithoutTables(t *testing.T) {
	found, err := tryKernel(func(f feature, k *trial) error {
		return f.try(&trial{netns: k.netns, routes: k.routes})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range features {
		is := slices.ContainsFunc(found, func(x Finding) bool { return x.Needed == f.name })
		if want := strings.Contains(f.name, "nf_tables"); want && !is {
			t.Errorf("%s is not found missing", f.name)
		}
	}
}

// TestWhatNoKernelHas: a real kernel refuses what it does not have as missing says.
func TestWhatNoKernelHas(t *testing.T) {
	found, err := tryKernel(func(f feature, k *trial) error {
		if f.name != features[0].name {
			return nil
		}
		return errors.Join(k.routes.Do(rtnl.NewLink("no-such-kind", "trial"))...)
	})
	if err != nil || len(found) != 1 {
		t.Errorf("%v, %v", found, err)
	}
}
