package crash

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// kernel is what the node's kernel says, as iproute2 would write it. Neither the agent's code nor
// a process reads it: the one would share its mistakes, the other takes too long for a million
// steps.
type kernel struct {
	links     string // names
	neighbors string // names of the links that have permanent ones
	routes    string // of flock's protocol in the main table, one a line: "2001:db8::1 dev uplink type 1 metric 1024"
	nexthops  string // IDs
	tables    string // what has a link's name in nftables, in sets as "flock-policy to-pod flock12345678", and host ports as "tcp . 9000 : 10.1.0.2 . 80"
}

const protocol = 85

func (n *node) kernel() (k kernel, err error) {
	n.host.Run(func() {
		if k, err = readKernel(); err == nil {
			k.tables, err = readTables()
		}
	})
	return k, err
}

// routed says whether there is a route to an address with a metric, and which nexthops there are.
func (n *node) routed(to string, metric int) (there bool, nexthops string, err error) {
	var k kernel
	n.host.Run(func() { k, err = readKernel() })
	return regexp.MustCompile(fmt.Sprintf(`(?m)^%s .*metric %d$`, regexp.QuoteMeta(to), metric)).MatchString(k.routes), k.nexthops, err
}

func readKernel() (k kernel, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return k, err
	}
	defer unix.Close(fd)
	// The kernel selects routes by what the question says.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return k, err
	}
	names := map[uint32]string{}
	var links, neighbors, routes, nexthops strings.Builder
	err = dump(fd, unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(m []byte) {
		name := strings.TrimRight(string(attributes(m[unix.SizeofIfInfomsg:])[unix.IFLA_IFNAME]), "\x00")
		names[binary.NativeEndian.Uint32(m[4:])] = name
		fmt.Fprintln(&links, name)
	})
	if err != nil {
		return k, err
	}
	err = dump(fd, unix.RTM_GETNEIGH, make([]byte, unix.SizeofNdMsg), func(m []byte) {
		if binary.NativeEndian.Uint16(m[8:])&unix.NUD_PERMANENT != 0 {
			fmt.Fprintln(&neighbors, names[binary.NativeEndian.Uint32(m[4:])])
		}
	})
	if err != nil {
		return k, err
	}
	for _, family := range []byte{unix.AF_INET6, unix.AF_INET} {
		err = dump(fd, unix.RTM_GETROUTE, []byte{family, 0, 0, 0, unix.RT_TABLE_MAIN, protocol, 0, 0, 0, 0, 0, 0}, func(m []byte) {
			a := attributes(m[unix.SizeofRtMsg:])
			addr, _ := netip.AddrFromSlice(a[unix.RTA_DST])
			to := netip.PrefixFrom(addr, int(m[1])).String()
			if int(m[1]) == addr.BitLen() {
				to = addr.String()
			}
			fmt.Fprint(&routes, to, " ")
			if oif := a[unix.RTA_OIF]; oif != nil {
				fmt.Fprint(&routes, "dev ", names[binary.NativeEndian.Uint32(oif)], " ")
			}
			metric := uint32(0)
			if m := a[unix.RTA_PRIORITY]; m != nil {
				metric = binary.NativeEndian.Uint32(m)
			}
			fmt.Fprintln(&routes, "type", m[7], "metric", metric)
		})
		if err != nil {
			return k, err
		}
	}
	err = dump(fd, unix.RTM_GETNEXTHOP, make([]byte, unix.SizeofNhmsg), func(m []byte) {
		fmt.Fprintln(&nexthops, binary.NativeEndian.Uint32(attributes(m[unix.SizeofNhmsg:])[unix.NHA_ID]))
	})
	return kernel{links: links.String(), neighbors: neighbors.String(), routes: routes.String(), nexthops: nexthops.String()}, err
}

var tcpPort = []byte{unix.IPPROTO_TCP, 0, 0, 0} // and the port, padded to four bytes

// readTables reads rules and elements of sets.
func readTables() (string, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	const nftables = unix.NFNL_SUBSYS_NFTABLES << 8
	header := func(family byte) []byte { return []byte{family, 0, 0, 0} } // struct nfgenmsg
	var out strings.Builder
	names := func(of string, b []byte) {
		for _, name := range linkName.FindAll(b, -1) {
			fmt.Fprintf(&out, "%s%s\n", of, name)
		}
	}
	if err := dump(fd, nftables|unix.NFT_MSG_GETRULE, header(unix.AF_UNSPEC), func(m []byte) { names("", m) }); err != nil {
		return "", err
	}
	type set struct {
		family      byte
		table, name []byte
	}
	var sets []set
	err = dump(fd, nftables|unix.NFT_MSG_GETSET, header(unix.AF_UNSPEC), func(m []byte) {
		a := attributes(m[4:])
		sets = append(sets, set{m[0], slices.Clone(a[unix.NFTA_SET_TABLE]), slices.Clone(a[unix.NFTA_SET_NAME])})
	})
	if err != nil {
		return "", err
	}
	for _, s := range sets {
		question := attribute(attribute(header(s.family), unix.NFTA_SET_ELEM_LIST_TABLE, s.table), unix.NFTA_SET_ELEM_LIST_SET, s.name)
		of := fmt.Sprintf("%s %s ", unix.ByteSliceToString(s.table), unix.ByteSliceToString(s.name))
		err := dump(fd, nftables|unix.NFT_MSG_GETSETELEM, question, func(m []byte) {
			names(of, m)
			for list := attributes(m[4:])[unix.NFTA_SET_ELEM_LIST_ELEMENTS]; len(list) >= 4; {
				size := int(binary.NativeEndian.Uint16(list))
				element := attributes(list[4:size])
				list = list[min((size+3)&^3, len(list)):]
				key := attributes(element[unix.NFTA_SET_ELEM_KEY])[unix.NFTA_DATA_VALUE]
				to := attributes(element[unix.NFTA_SET_ELEM_DATA])[unix.NFTA_DATA_VALUE]
				addr, ok := netip.AddrFromSlice(to[:max(0, len(to)-4)])
				if bytes.HasPrefix(key, tcpPort) && len(key) == 8 && ok {
					fmt.Fprintf(&out, "tcp . %d : %v . %d\n", binary.BigEndian.Uint16(key[4:]), addr, binary.BigEndian.Uint16(to[len(to)-4:]))
				}
			}
		})
		if err != nil {
			return "", err
		}
	}
	return out.String(), nil
}

func attribute(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, typ), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

var errChanged = errors.New("the kernel changed amid a dump")

var buffers = sync.Pool{New: func() any { return new(make([]byte, 1<<16)) }}

// dump asks for all of a kind. What changed meanwhile makes it an error.
func dump(fd int, typ uint16, question []byte, each func(message []byte)) error {
	b := message(typ, question)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	interrupted := false
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for in := *buffer; ; {
		n, _, err := unix.Recvfrom(fd, in, 0)
		if err != nil {
			return err
		}
		for left := in[:n]; len(left) >= 16; {
			size, is, flags := binary.NativeEndian.Uint32(left), binary.NativeEndian.Uint16(left[4:]), binary.NativeEndian.Uint16(left[6:])
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch is {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if errno := int32(binary.NativeEndian.Uint32(left[16:])); errno != 0 {
					return fmt.Errorf("dump %d: %w", typ, unix.Errno(-errno))
				}
				if interrupted {
					return errChanged
				}
				return nil
			}
			each(left[16:size])
			left = left[min(int(size+3)&^3, len(left)):]
		}
	}
}

// meddle changes what is flock's in the kernel. A process would not do it in another way, and it
// takes longer than what the agent does about it.
func (n *node) meddle(what string) (err error) {
	if what == "sysctls" {
		n.host.Sysctl("ipv4/ip_forward", "0")
		n.host.Sysctl("ipv6/conf/all/forwarding", "0")
		return nil
	}
	n.host.Run(func() {
		if what == "tables" {
			err = flushTables()
		} else {
			err = meddleWith(what)
		}
	})
	return err
}

// meddleWith does to "routes", "neighbor" or "links" what iproute2 does when it flushes or sets them.
// What is gone already is none of its business.
func meddleWith(what string) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return err
	}
	var requests [][]byte
	collect := func(get uint16, question []byte, request func(m []byte) []byte) {
		// A dump amid which something changed has enough.
		if e := dump(fd, get, question, func(m []byte) {
			if r := request(m); r != nil {
				requests = append(requests, r)
			}
		}); e != nil && !errors.Is(e, errChanged) {
			err = errors.Join(err, e)
		}
	}
	switch what {
	case "routes":
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			collect(unix.RTM_GETROUTE, []byte{family, 0, 0, 0, unix.RT_TABLE_MAIN, protocol, 0, 0, 0, 0, 0, 0},
				func(m []byte) []byte { return message(unix.RTM_DELROUTE, m) })
		}
	case "neighbor":
		collect(unix.RTM_GETNEIGH, make([]byte, unix.SizeofNdMsg), func(m []byte) []byte {
			if binary.NativeEndian.Uint16(m[8:])&unix.NUD_PERMANENT == 0 {
				return nil
			}
			return message(unix.RTM_DELNEIGH, m)
		})
	case "links":
		collect(unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(m []byte) []byte {
			if !linkName.Match(attributes(m[unix.SizeofIfInfomsg:])[unix.IFLA_IFNAME]) {
				return nil
			}
			set := make([]byte, unix.SizeofIfInfomsg)
			copy(set[4:8], m[4:8]) // its index
			set = attribute(set, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, 1400))
			return message(unix.RTM_SETLINK, attribute(set, unix.IFLA_IFALIAS, []byte("taken")))
		})
	default:
		return fmt.Errorf("nobody meddles with %q", what)
	}
	for _, r := range requests {
		err = errors.Join(err, unix.Sendto(fd, r, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	}
	return err
}

// flushTables is "nft flush ruleset".
func flushTables() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const beginBatch, endBatch = unix.NLMSG_MIN_TYPE, unix.NLMSG_MIN_TYPE + 1
	of := []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES} // struct nfgenmsg
	deletion := message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, []byte{unix.AF_UNSPEC, 0, 0, 0})
	binary.NativeEndian.PutUint16(deletion[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	batch := slices.Concat(message(beginBatch, of), deletion, message(endBatch, of))
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 1<<12)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < 20 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("flush of the tables: %x", answer[:n])
	}
	if errno := int32(binary.NativeEndian.Uint32(answer[16:])); errno != 0 {
		return fmt.Errorf("flush of the tables: %w", unix.Errno(-errno))
	}
	return nil
}

// message is one over netlink, to which there is an answer only if it fails.
func message(typ uint16, body []byte) []byte {
	b := make([]byte, 16, 16+len(body))
	binary.NativeEndian.PutUint32(b, uint32(16+len(body)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	return append(b, body...)
}

// attributes are those of a message, by type.
func attributes(b []byte) map[uint16][]byte {
	all := map[uint16][]byte{}
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			break
		}
		all[binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = b[4:size]
		b = b[min((size+3)&^3, len(b)):]
	}
	return all
}

// TestKernel holds what is read against iproute2.
func TestKernel(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start()
	bystand(n)
	n.kill() // it would take away what is not its own
	n.host.IP("-6", "nexthop", "add", "id", "7", "dev", "uplink")
	n.host.IP("-6", "route", "add", "2001:db8:7::/64", "nhid", "7", "proto", "85")
	n.host.IP("-6", "route", "add", "2001:db8:8::/64", "dev", "uplink", "proto", "86")
	n.host.IP("neighbor", "add", "192.0.2.7", "lladdr", "02:00:00:00:00:07", "dev", "uplink")
	k, err := n.kernel()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ what, command, word, got string }{
		{"links", "ip -o link", `(?m)^\d+: ([^:@]+)`, k.links},
		{"neighbors", "ip neighbor show nud permanent", `dev (\S+)`, k.neighbors},
		{"routes", "ip -6 -o route show proto 85; ip -4 -o route show proto 85", `(?m)^(?:unreachable )?([0-9]\S+)`, firstWords(k.routes)},
		{"links of routes", "ip -6 -o route show proto 85; ip -4 -o route show proto 85", `dev (\S+)`, strings.Join(regexp.MustCompile(`dev \S+`).FindAllString(k.routes, -1), "\n")},
		{"metrics", "ip -6 -o route show proto 85; ip -4 -o route show proto 85", `metric (\d+)`, strings.ReplaceAll(strings.Join(regexp.MustCompile(`metric [1-9]\d*`).FindAllString(k.routes, -1), "\n"), "metric ", "")},
		{"nexthops", "ip -o nexthop", `id (\d+)`, k.nexthops},
		{"names in tables", "nft list ruleset", `(flock[0-9a-f]{8})`, strings.Join(linkName.FindAllString(k.tables, -1), "\n")},
		{"host ports", "nft list ruleset", `(tcp \. \d+ : \S+ \. 80)`, strings.Join(regexp.MustCompile("tcp.*").FindAllString(k.tables, -1), "\n")},
	} {
		var want []string
		for _, found := range regexp.MustCompile(c.word).FindAllStringSubmatch(n.host.Exec("sh", "-c", c.command), -1) {
			want = append(want, found[1])
		}
		got := strings.Split(strings.ReplaceAll(strings.TrimSpace(c.got), "dev ", ""), "\n")
		slices.Sort(got)
		slices.Sort(want)
		if len(want) == 0 || !slices.Equal(got, want) {
			t.Errorf("%s:\n%q, want\n%q", c.what, got, want)
		}
	}
}

// TestMeddling holds what another program does to what iproute2 and nft say then.
func TestMeddling(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start()
	bystand(n)
	n.kill() // it would repair it
	n.host.IP("-6", "route", "add", "2001:db8:8::/64", "dev", "uplink", "proto", "86")
	n.host.IP("neighbor", "add", "192.0.2.7", "lladdr", "02:00:00:00:00:07", "dev", "uplink")
	for _, c := range []struct{ what, command, gone, left string }{
		{"links", "ip -d -o link", `flock[0-9a-f]{8}.* mtu 1500`, `flock[0-9a-f]{8}@.* mtu 1400 .*alias taken`},
		{"routes", "ip -6 route; ip route", `proto 85`, `2001:db8:8::/64 .*proto 86`},
		{"neighbor", "ip neighbor show nud permanent; ip link show uplink", `PERMANENT`, `uplink`},
		{"tables", "nft list tables; echo none", `table`, `none`},
		{"sysctls", "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding", `= 1`, `forwarding = 0`},
	} {
		is := func() string { return n.host.Exec("sh", "-c", c.command) }
		if gone := regexp.MustCompile(c.gone); !gone.MatchString(is()) {
			t.Fatalf("%s: there is nothing to meddle with: %s", c.what, is())
		} else if err := n.meddle(c.what); err != nil {
			t.Errorf("%s: %v", c.what, err)
		} else if got := is(); gone.MatchString(got) || !regexp.MustCompile(c.left).MatchString(got) {
			t.Errorf("%s: %s", c.what, got)
		}
	}
}

func firstWords(lines string) string {
	return regexp.MustCompile(`(?m) .*`).ReplaceAllString(lines, "")
}
