package kerneltest

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// Object is one object of flock's.
type Object struct {
	Kind kernel.Kind
	// Name says which it is, and what it is like.
	Name string
	// Remove is a shell's command that takes it away, or spoils it.
	Remove string
	// Link is the host end that it is on; empty if it is on none.
	Link string
	// Shared: pods lose packets while it is away, whosever it is.
	Shared bool
	// Silent: the kernel does not notify of its change.
	Silent bool
}

// Run runs a program in the node's network namespace.
type Run func(name string, args ...string) (string, error)

// Objects lists everything of flock's, in order of kind.
func Objects(run Run) (all []Object, err error) {
	for _, k := range kernel.Kinds {
		list, ok := lists[k]
		if !ok {
			return nil, fmt.Errorf("no way to list objects of kind %q: add one to pkg/datapath/kernel/kerneltest", k)
		}
		objects, err := list(run)
		if err != nil {
			return nil, err
		}
		for i := range objects {
			objects[i].Kind = k
		}
		slices.SortFunc(objects, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
		all = append(all, objects...)
	}
	return all, nil
}

// Names are those of objects, to compare.
func Names(objects []Object) (names []string) {
	for _, o := range objects {
		names = append(names, string(o.Kind)+" "+o.Name)
	}
	return names
}

var lists = map[kernel.Kind]func(Run) ([]Object, error){
	kernel.Link: links, kernel.Address: addresses, kernel.Neighbour: neighbours, kernel.Route: routes,
	kernel.Nexthop: nexthops, kernel.Sysctl: sysctls, kernel.NFTables: tables,
}

// list runs a program that prints a JSON array.
func list[T any](run Run, name string, args ...string) (all []T, err error) {
	out, err := run(name, args...)
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(out) == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return all, nil
}

type link struct {
	Name    string   `json:"ifname"`
	Flags   []string `json:"flags"`
	MTU     int      `json:"mtu"`
	Address string   `json:"address"`
	Alias   string   `json:"ifalias"`
	Group   string   `json:"group"`
	Master  string   `json:"master"`
	Addrs   []struct {
		Local  string `json:"local"`
		Length int    `json:"prefixlen"`
	} `json:"addr_info"`
}

// hostEnds are the links of pods that are not being deleted.
func hostEnds(run Run) (ends []link, err error) {
	all, err := list[link](run, "ip", "-j", "address")
	for _, l := range all {
		if kernel.IsLink(l.Name) && l.Group == "default" {
			ends = append(ends, l)
		}
	}
	return ends, err
}

func links(run Run) (all []Object, err error) {
	ends, err := hostEnds(run)
	for _, l := range ends {
		set := func(name, to string) {
			all = append(all, Object{Name: l.Name + " " + name, Remove: "ip link set " + l.Name + " " + to, Link: l.Name})
		}
		set("name", "name stolen0")
		set("up "+fmt.Sprint(slices.Contains(l.Flags, "UP")), "down")
		set(fmt.Sprint("mtu ", l.MTU), "mtu 1400")
		set("address "+l.Address, "address 02:00:00:00:00:01")
		set("alias "+l.Alias, "alias taken")
		set("master "+l.Master, "master stealer0")
		all[len(all)-1].Remove = "ip link add stealer0 type bridge 2>/dev/null; " + all[len(all)-1].Remove
	}
	if err != nil {
		return nil, err
	}
	service, err := serviceLink(run)
	for _, l := range service {
		set := func(name, to string) {
			all = append(all, Object{Name: l.Name + " " + name, Remove: "ip link set " + l.Name + " " + to})
		}
		set("up "+fmt.Sprint(slices.Contains(l.Flags, "UP")), "down")
		set(fmt.Sprint("noarp ", slices.Contains(l.Flags, "NOARP")), "arp on")
		all = append(all, Object{Name: l.Name, Remove: "ip link del " + l.Name})
	}
	return all, err
}

// serviceLink is the link of Services' addresses, if there is one.
func serviceLink(run Run) (found []link, err error) {
	all, err := list[link](run, "ip", "-j", "address")
	for _, l := range all {
		if l.Name == kernel.ServiceLink {
			found = append(found, l)
		}
	}
	return found, err
}

func addresses(run Run) (all []Object, err error) {
	ends, err := hostEnds(run)
	for _, l := range ends {
		for _, a := range l.Addrs {
			name := fmt.Sprintf("%s/%d dev %s", a.Local, a.Length, l.Name)
			all = append(all, Object{Name: name, Remove: "ip address del " + name, Link: l.Name})
		}
	}
	return all, err
}

func neighbours(run Run) (all []Object, err error) {
	entries, err := list[struct {
		Dst  string `json:"dst"`
		Dev  string `json:"dev"`
		Addr string `json:"lladdr"`
	}](run, "ip", "-j", "neighbour", "show", "nud", "permanent")
	for _, n := range entries {
		if kernel.IsLink(n.Dev) {
			all = append(all, Object{
				Name: fmt.Sprintf("%s lladdr %s dev %s", n.Dst, n.Addr, n.Dev), Link: n.Dev,
				Remove: fmt.Sprintf("ip neighbour del %s dev %s", n.Dst, n.Dev),
			})
		}
	}
	return all, err
}

func routes(run Run) (all []Object, err error) {
	for _, family := range []string{"-6", "-4"} {
		entries, err := list[struct {
			Type    string `json:"type"`
			Dst     string `json:"dst"`
			Dev     string `json:"dev"`
			Metric  int    `json:"metric"`
			Group   int    `json:"nhid"`
			Metrics []any  `json:"metrics"`
		}](run, "ip", "-j", family, "route", "show", "proto", fmt.Sprint(kernel.RouteProtocol))
		if err != nil {
			return nil, err
		}
		for _, r := range entries {
			name := strings.TrimSpace(fmt.Sprintf("%s %s metric %d", r.Type, r.Dst, r.Metric))
			o := Object{Name: name, Remove: fmt.Sprintf("ip %s route del %s", family, name)}
			if r.Group != 0 {
				o.Name += " on a nexthop group"
			} else if kernel.IsLink(r.Dev) {
				o.Name, o.Link = name+" dev "+r.Dev, r.Dev
				plain := o
				plain.Name = fmt.Sprintf("%s, attributes %v", o.Name, r.Metrics)
				plain.Remove = fmt.Sprintf("ip %s route change %s dev %s proto %d mtu 1300", family, name, r.Dev, kernel.RouteProtocol)
				all = append(all, plain)
			} else if r.Dev == kernel.ServiceLink {
				o.Name = name + " dev " + r.Dev
			}
			all = append(all, o)
		}
	}
	return all, nil
}

func nexthops(run Run) (all []Object, err error) {
	entries, err := list[struct {
		ID       int    `json:"id"`
		Dev      string `json:"dev"`
		Scope    string `json:"scope"`
		Protocol string `json:"protocol"`
		Group    []struct {
			ID int `json:"id"`
		} `json:"group"`
	}](run, "ip", "-j", "nexthop")
	// They come back with other IDs: names are what they are, and how many.
	for _, n := range entries {
		if n.Protocol != fmt.Sprint(kernel.RouteProtocol) {
			continue
		}
		name := fmt.Sprintf("group of %d", len(n.Group))
		if n.Dev != "" {
			name = "dev " + n.Dev
		}
		all = append(all, Object{Name: name, Remove: fmt.Sprintf("ip nexthop del id %d", n.ID), Link: n.Dev})
	}
	return all, err
}

func sysctls(run Run) (all []Object, err error) {
	add := func(name, want, link string) error {
		got, err := run("cat", "/proc/sys/net/"+name)
		other := "0"
		if want == "0" {
			other = "2"
		}
		got = strings.TrimSpace(got)
		if strings.HasSuffix(name, "accept_ra") && got == "1" {
			got = "0" // where the link forwards, both are off
		}
		silent := strings.HasSuffix(name, "accept_ra") || strings.HasSuffix(name, "route_localnet") || name == kernel.HashPolicy4 || name == kernel.HashPolicy6
		all = append(all, Object{
			Name: name + "=" + got, Remove: fmt.Sprintf("echo %s > /proc/sys/net/%s", other, name),
			Link: link, Shared: link == "", Silent: silent,
		})
		return err
	}
	for name, want := range kernel.NodeSysctls {
		if err := add(name, want, ""); err != nil {
			return nil, err
		}
	}
	ends, err := hostEnds(run)
	if err != nil {
		return nil, err
	}
	for _, l := range ends {
		// Only pods with host ports have this one.
		localnet := kernel.LinkSysctl("ipv4", l.Name, "route_localnet")
		if on, err := run("cat", "/proc/sys/net/"+localnet); err != nil {
			return nil, err
		} else if strings.TrimSpace(on) == "1" {
			if err := add(localnet, "1", l.Name); err != nil {
				return nil, err
			}
		}
		for _, s := range kernel.LinkSysctls {
			if err := add(kernel.LinkSysctl(s.Family, l.Name, s.Name), s.Value, l.Name); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// dynamic is in nft's text of a set whose elements come and go with packets.
var dynamic = regexp.MustCompile(`(?m)^\s*flags .*\bdynamic\b`)

func tables(run Run) (all []Object, err error) {
	out, err := run("nft", "-j", "list", "ruleset")
	if err != nil {
		return nil, err
	}
	type object struct {
		Family string            `json:"family"`
		Table  string            `json:"table"`
		Chain  string            `json:"chain"`
		Name   string            `json:"name"`
		Elem   []json.RawMessage `json:"elem"`
	}
	var ruleset struct {
		Objects []map[string]object `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(out), &ruleset); err != nil {
		return nil, fmt.Errorf("nft -j list ruleset: %w", err)
	}
	rules := map[string]int{}
	for _, o := range ruleset.Objects {
		if r, ok := o["rule"]; ok {
			rules[r.Family+" "+r.Table+" "+r.Chain]++
		}
	}
	for _, o := range ruleset.Objects {
		for what, object := range o {
			path := object.Family + " " + object.Table + " " + object.Name
			switch {
			case what == "table" && slices.Contains(kernel.Tables, object.Name):
				path = object.Family + " " + object.Name
				all = append(all, Object{Name: "table " + path, Remove: "nft delete table " + path})
				// JSON does not say whether a table is dormant.
				text, err := run("nft", "--terse", "list", "table", object.Family, object.Name)
				if err != nil {
					return nil, err
				}
				if !strings.Contains(text, "flags dormant") {
					all = append(all, Object{Name: "table " + path + " in force", Remove: "nft add table " + path + " '{ flags dormant; }'"})
				}
			case !slices.Contains(kernel.Tables, object.Table):
			case what == "chain":
				all = append(all, Object{Name: fmt.Sprintf("chain %s of %d rules", path, rules[path]), Remove: "nft flush chain " + path})
			case (what == "set" || what == "map") && len(object.Elem) > 0:
				// JSON of nft 1.0.6 does not say either whether packets add its elements.
				text, err := run("nft", "--terse", "list", what, object.Family, object.Table, object.Name)
				if err != nil {
					return nil, err
				}
				if dynamic.MatchString(text) {
					continue
				}
				all = append(all, Object{Name: fmt.Sprintf("%s %s of %d elements", what, path, len(object.Elem)), Remove: "nft flush " + what + " " + path, Shared: true})
			}
		}
	}
	return all, nil
}
