package anycast

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/sysctl"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// OpenFIB opens the kernel of the calling thread's network namespace. If that cannot
// have anycast routes, [FIB.Unfit] says why. The FIB then knows links and refuses each
// change, so that everything but anycast works.
func OpenFIB() (*FIB, error) {
	node, err := sys.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("node's network namespace: %w", err)
	}
	conn, err := rtnl.Dial()
	if err != nil {
		node.Close()
		return nil, err
	}
	f := &FIB{netns: node, conn: conn, last: kernel.LastNexthop}
	if f.watch, err = rtnl.Subscribe(unix.RTNLGRP_LINK); err != nil {
		conn.Close()
		node.Close()
		return nil, err
	}
	f.fit()
	return f, nil
}

// fit finds out whether the kernel can have anycast routes.
func (f *FIB) fit() error {
	if _, f.unfit = prepare(); f.unfit == nil {
		f.unfit = f.probe()
	}
	return f.unfit
}

// Unfit says why the kernel cannot have anycast routes; nil if it can.
func (f *FIB) Unfit() error { return f.unfit }

// prepare looks at the sysctls that matter, sets those that may be, and returns which it set.
func prepare() (set []datapath.Repair, err error) {
	// If this is off, a route on a nexthop does not contain its link, and the routing
	// daemon cannot use it.
	const compat = "/proc/sys/net/ipv4/nexthop_compat_mode"
	if b, err := sys.ReadFile(compat); err == nil && strings.TrimSpace(string(b)) == "0" {
		return nil, errors.New(`sysctl net.ipv4.nexthop_compat_mode=0: want 1, or the routing daemon cannot read anycast routes; set it with "sysctl net.ipv4.nexthop_compat_mode=1"`)
	}
	for _, name := range []string{kernel.HashPolicy6, kernel.HashPolicy4} {
		changed, err := hashPorts(name)
		if err != nil {
			return set, fmt.Errorf(`%w: want 1, so that flows are spread by their ports too; set it with "sysctl %s=1"`, err, sysctl.Name(name))
		}
		if changed {
			set = append(set, datapath.Repair{Kind: kernel.Sysctl, Object: sysctl.Name(name), Found: "not 1"})
		}
	}
	return set, nil
}

// hashPorts makes the kernel spread flows by their ports too, if it has its default of
// addresses alone. With the default all flows of one client go to one pod, and IPv6
// flows move when their flow label changes, as it does on Linux when an answer is late.
func hashPorts(name string) (changed bool, err error) {
	switch value, err := sysctl.Read(name); {
	case errors.Is(err, fs.ErrNotExist): // a kernel without the family, or without ECMP
		return false, nil
	case err != nil:
		return false, err
	case value != "0":
		return false, nil // somebody has chosen
	}
	return true, sysctl.Write(name, "1")
}

// probe finds out what kind of groups the kernel has, by making one that leads
// nowhere.
func (f *FIB) probe() error {
	if _, err := f.load(); errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("anycast needs nexthop objects, kernel 5.3 or newer: %w", err)
	} else if err != nil {
		return err
	}
	single, group := f.newID(), f.newID()
	defer f.free(single)
	defer f.free(group)
	f.plain = false
	errs := f.conn.Do(
		rtnl.NewNexthop(rtnl.Nexthop{ID: single, Proto: kernel.RouteProtocol, IPv6: true, Blackhole: true}),
		rtnl.NewNexthop(rtnl.Nexthop{
			ID: group, Proto: kernel.RouteProtocol, Group: []rtnl.NexthopMember{{ID: single, Weight: weight}},
			Resilient: &rtnl.Resilient{Buckets: buckets},
		}),
		rtnl.DelNexthop(group),
		rtnl.DelNexthop(single),
	)
	if errs == nil {
		return nil
	}
	f.plain, errs[1] = lacks(errs[1])
	return errors.Join(errs[0], errs[1], errs[3])
}

// lacks says whether the kernel has answered to a group's creation that it has no such groups. Any
// other error, such as ENOMEM, says nothing of that.
func lacks(err error) (bool, error) {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return true, nil
	}
	return false, err
}
