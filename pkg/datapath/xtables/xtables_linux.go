package xtables

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/sys"
)

// Of linux/netfilter_ipv4/ip_tables.h and its like for IPv6, on 64-bit machines.
const (
	soGetInfo    = 64 // IPT_SO_GET_INFO
	soGetEntries = 65 // IPT_SO_GET_ENTRIES

	nameSize    = 32
	infoSize    = 84 // struct ipt_getinfo
	tableAt     = 40 // entrytable in struct ipt_get_entries
	hookForward = 2  // NF_INET_FORWARD
	ifNameSize  = 16

	// A verdict is written as its negative, less one (NF_DROP, NF_ACCEPT).
	verdictDrop, verdictAccept = -1, -2
)

var native = binary.NativeEndian

// layout is where the fields of an entry are (struct ipt_entry, struct ip6t_entry).
type layout struct {
	ipv6          bool
	domain, level int
	names         string // the file with the names of tables
	addr          int    // bytes of an address
	protocol      int    // offset of proto
	flags         int    // offset of invflags
	match         int    // bytes of what is matched without extensions
	target, next  int    // offsets of target_offset and next_offset
	size          int
}

var layouts = []layout{
	{false, unix.AF_INET, unix.SOL_IP, "ip_tables_names", 4, 80, 83, 84, 88, 90, 112},
	{true, unix.AF_INET6, unix.SOL_IPV6, "ip6_tables_names", 16, 128, 132, 136, 140, 142, 168},
}

// Flags of what is inverted (IPT_INV_…).
const (
	invIn  = 0x01
	invOut = 0x02
	invSrc = 0x08
	invDst = 0x10
)

// Forward reads the chains FORWARD of the calling thread's network namespace.
func Forward() (chains []Chain, err error) {
	for _, l := range layouts {
		tables, err := l.tables()
		if err != nil {
			return nil, err
		}
		for _, t := range tables {
			c, ok, err := l.forward(t)
			if errors.Is(err, unix.ENOENT) { // gone meanwhile
				continue
			} else if err != nil {
				return nil, fmt.Errorf("table %s of iptables-legacy: %w", t, err)
			}
			if ok {
				chains = append(chains, c)
			}
		}
	}
	return chains, nil
}

// tables are the names of the tables that there are. To ask the kernel for another one would
// create it.
func (l layout) tables() (names []string, err error) {
	b, err := sys.ReadFile("/proc/thread-self/net/" + l.names)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		names = append(names, lines.Text())
	}
	return names, err
}

// forward reads one table; ok is false if forwarded packets do not pass it.
func (l layout) forward(table string) (c Chain, ok bool, err error) {
	info, entries, err := l.read(table)
	if err != nil {
		return c, false, err
	}
	hooks, entry, underflow := native.Uint32(info[nameSize:]), info[nameSize+4:], info[nameSize+24:]
	if hooks&(1<<hookForward) == 0 {
		return c, false, nil
	}
	c = Chain{IPv6: l.ipv6, Table: table}
	at := 4 * hookForward
	err = l.parse(entries, int(native.Uint32(entry[at:])), int(native.Uint32(underflow[at:])), &c)
	return c, true, err
}

// read returns what the kernel says of a table (struct ipt_getinfo), and its entries.
func (l layout) read(table string) (info, entries []byte, err error) {
	// The tables are asked for at any socket of the family. A raw one would need
	// CAP_NET_RAW.
	fd, err := sys.Socket(l.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	const attempts = 10
	for range attempts {
		info = make([]byte, infoSize)
		copy(info, table)
		if err = getsockopt(fd, l.level, soGetInfo, info); err != nil {
			return nil, nil, err
		}
		size := native.Uint32(info[infoSize-4:])
		entries = make([]byte, tableAt+size)
		copy(entries, table)
		native.PutUint32(entries[nameSize:], size)
		switch err = getsockopt(fd, l.level, soGetEntries, entries); {
		case errors.Is(err, unix.EAGAIN): // it has another size now
			continue
		case err != nil:
			return nil, nil, err
		}
		return info, entries[tableAt:], nil
	}
	return nil, nil, err
}

func getsockopt(fd, level, name int, b []byte) error {
	n := uint32(len(b))
	if err := sys.Getsockopt(fd, level, name, unsafe.Pointer(&b[0]), &n); err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	return nil
}

var errMalformed = errors.New("the kernel's entries cannot be read")

// parse reads a table's entries. Those of FORWARD begin at first; the one at policy is the
// policy.
func (l layout) parse(b []byte, first, policy int, to *Chain) error {
	decided := false
	for at := 0; at < len(b); {
		e := b[at:]
		if len(e) < l.size {
			return errMalformed
		}
		target, next := int(native.Uint16(e[l.target:])), int(native.Uint16(e[l.next:]))
		if target < l.size || next < target+nameSize || next > len(e) {
			return errMalformed
		}
		e = e[:next]
		to.Rules = append(to.Rules, l.rule(e))
		// The first rule that decides on everything is the last one that counts.
		if all := target == l.size && isZero(e[:l.match]); all && !decided && at >= first && at <= policy {
			to.Drops = drops(e[target:])
			decided = to.Drops || accepts(e[target:])
		}
		at += next
	}
	return nil
}

// rule reads what an entry says of links and addresses.
func (l layout) rule(e []byte) (r Rule) {
	inverted := e[l.flags]
	n := l.addr
	address := func(at int, flag byte) (p netip.Prefix) {
		addr, _ := netip.AddrFromSlice(e[at : at+n])
		bits := 0
		for _, b := range e[at+2*n : at+3*n] {
			for ; b&0x80 != 0; b <<= 1 {
				bits++
			}
		}
		if inverted&flag == 0 && bits > 0 {
			p = netip.PrefixFrom(addr, bits)
		}
		return p
	}
	link := func(at int, flag byte) string {
		name := unix.ByteSliceToString(e[at : at+ifNameSize])
		mask := e[at+2*ifNameSize : at+3*ifNameSize]
		if inverted&flag != 0 || name == "" {
			return ""
		}
		if compared := bytes.Count(mask, []byte{0xff}); compared <= len(name) && compared < ifNameSize {
			name = name[:compared] + "+" // not to its final zero
		}
		return name
	}
	r.Src, r.Dst = address(0, invSrc), address(n, invDst)
	r.In, r.Out = link(4*n, invIn), link(4*n+ifNameSize, invOut)
	return r
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// verdict is that of a standard target, 0 of another one.
func verdict(target []byte) int32 {
	if targetName(target) != "" || len(target) < nameSize+4 {
		return 0
	}
	return int32(native.Uint32(target[nameSize:]))
}

func targetName(target []byte) string { return unix.ByteSliceToString(target[2:31]) }

func drops(target []byte) bool {
	return verdict(target) == verdictDrop || targetName(target) == "REJECT"
}

func accepts(target []byte) bool { return verdict(target) == verdictAccept }
