//go:build linux

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/version"
	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/datapath/anycast"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/sourceguard"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
	"flock.fritzlab.net/flock/pkg/scrape"
	"flock.fritzlab.net/flock/pkg/view"
)

// viewer shows the node to people: at the agent's socket for flockctl, and as a page at
// --page-address. It reads the kernel and what the other parts report, and changes nothing.
type viewer struct {
	node     string
	address  string // of the page; empty if it is not served
	kernel   *rtnl.Conn
	ledger   *ledger.Ledger
	anycast  *anycast.Controller
	guard    *sourceguard.Guard
	policies *policies
	daemon   cell.Reader[daemon]
	events   *kube.Recorder
	parts    parts
	log      *slog.Logger

	mu   sync.Mutex // guards last; one looks at a time
	last view.Node
}

// viewFor is how long a look at the node is good for: the page may be asked for often.
const viewFor = time.Second

// Close implements Closer.
func (v *viewer) Close() { v.kernel.Close() }

// Answer implements Answerer: GET /pod?pod=NAMESPACE/NAME has the pod's attachments, as
// [view.Pod]. flockctl asks it.
func (v *viewer) Answer() (pattern string, h http.Handler) {
	return "GET /pod", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		namespace, name, ok := strings.Cut(r.URL.Query().Get("pod"), "/")
		if !ok || namespace == "" || name == "" {
			http.Error(w, fmt.Sprintf("pod=%s: want NAMESPACE/NAME", r.URL.Query().Get("pod")), http.StatusBadRequest)
			return
		}
		found := []view.Pod{}
		n := v.look(r.Context(), 0)
		for _, p := range n.Pods {
			if p.Namespace == namespace && p.Name == name {
				found = append(found, p)
			}
		}
		if len(n.Errors) > 0 {
			http.Error(w, strings.Join(n.Errors, "\n"), http.StatusInternalServerError)
			return
		}
		if report, err := v.policies.About(r.Context(), namespace, name); err == nil {
			for i := range found {
				for _, d := range report.Decisions {
					found[i].Policies = append(found[i].Policies, fmt.Sprintf("%s %s %s: %d packets of all pods here", d.Verdict, d.Policy, d.Direction, d.Packets))
				}
				if !report.InForce {
					found[i].Problems = append(found[i].Problems, "network policies are not in force as they should be: "+report.Why)
				}
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(found)
	})
}

// Run serves the page until ctx ends. An address that is taken is tried again.
func (v *viewer) Run(ctx context.Context) error {
	scrape.Address{Flag: "--page-address", Addr: v.address, Log: v.log}.Run(ctx, v.page())
	return nil
}

// page serves the page to browsers on the node. The Host of a request must be one of the
// loopback: a page of the Internet whose name leads to 127.0.0.1 could read it otherwise.
func (v *viewer) page() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if err := view.Page(w, v.look(r.Context(), viewFor)); err != nil && r.Context().Err() == nil {
			v.log.Debug("cannot write the node's page", "error", err)
		}
	})
	mux.HandleFunc("GET /node.json", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v.look(r.Context(), viewFor))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLoopback(r.Host) {
			http.Error(w, fmt.Sprintf("the page is for the node itself: ask for http://localhost and not for %q", r.Host), http.StatusForbidden)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// isLoopback says whether a host, with or without a port, is this machine's loopback.
func isLoopback(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.Trim(host, "[]")
	}
	addr, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && addr.IsLoopback()
}

// CheckPageAddress says what is wrong with an address for the page.
func CheckPageAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	switch {
	case address == "":
		return nil
	case err != nil || port == "":
		return fmt.Errorf("--page-address=%s: want an address and a port, as in 127.0.0.1:9481", address)
	case !isLoopback(host):
		return fmt.Errorf("--page-address=%s: the page has no authentication, so it is served on the loopback only: use 127.0.0.1:%s, and kubectl port-forward from elsewhere", address, port)
	}
	return nil
}

// look is the node as it is now, or was at most age ago.
func (v *viewer) look(ctx context.Context, age time.Duration) view.Node {
	v.mu.Lock()
	defer v.mu.Unlock()
	if age == 0 || time.Since(v.last.At) > age {
		v.last = v.read(ctx)
	}
	return v.last
}

func (v *viewer) read(ctx context.Context) view.Node {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	n := view.Node{Name: v.node, Version: version.Version, At: time.Now()}
	failed := func(what string, err error) {
		n.Errors = append(n.Errors, fmt.Sprintf("cannot read %s: %v", what, err))
	}
	ready := metav1.Condition{Type: "Ready", Status: metav1.ConditionTrue, Reason: "ServingPods"}
	if reason, message := v.parts.unready(); message != "" {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, reason, message
	}
	for _, c := range append([]metav1.Condition{ready}, v.parts.conditions()...) {
		if c.Status != "" {
			n.Conditions = append(n.Conditions, view.Condition{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message})
		}
	}
	n.Sessions = sessionsOf(v.daemon.Get())
	for _, e := range v.events.Recent() {
		object := e.Kind + " " + strings.TrimPrefix(e.Namespace+"/"+e.Name, "/")
		n.Events = append(n.Events, view.Event{At: e.At, Type: string(e.Type), Object: object, Reason: e.Reason, Note: e.Note})
	}
	denied := map[string]uint64{}
	totals, perPod, err := v.policies.Counted(ctx)
	if err != nil {
		failed("the counters of network policies", err)
	}
	for s, packets := range totals {
		n.Policies = append(n.Policies, view.Policy{Name: s.Policy.String(), Direction: string(s.Direction), Verdict: s.Verdict, Packets: packets})
	}
	slices.SortFunc(n.Policies, func(a, b view.Policy) int {
		return strings.Compare(a.Name+a.Direction+a.Verdict, b.Name+b.Direction+b.Verdict)
	})
	for _, d := range perPod {
		denied[d.Namespace+"/"+d.Name] += d.In + d.Out
	}
	k, err := readKernel(v.kernel)
	if err != nil {
		failed("the kernel's links and routes", err)
		return n
	}
	spoofed := map[string]uint64{}
	if drops, _, err := v.guard.Counters(); err != nil {
		failed("the source guard's counters", err)
	} else {
		for _, d := range drops {
			spoofed[d.HostIf] = d.Packets
		}
	}
	paths := map[pathKey]anycast.Path{}
	if status, err := v.anycast.Status(ctx); err != nil {
		failed("the anycast addresses", err)
	} else {
		for _, p := range status.Paths {
			paths[pathKey{p.Link, p.Addr}] = p
		}
	}
	holders := map[netip.Addr]string{}
	for _, r := range v.ledger.Records() {
		p := k.podOf(r, paths)
		p.Spoofed, p.Denied = spoofed[r.HostIf], denied[p.Namespace+"/"+p.Name]
		n.Pods = append(n.Pods, p)
		for _, a := range r.All() {
			holders[a] = strings.TrimPrefix(p.Namespace+"/"+p.Name, "/")
		}
	}
	slices.SortStableFunc(n.Pods, func(a, b view.Pod) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	for _, r := range k.routes {
		n.Routes = append(n.Routes, view.Route{Prefix: r.Dst.String(), To: k.to(r), Metric: r.Metric, For: purpose(r, holders)})
	}
	return n
}

func sessionsOf(d daemon) (all []view.Session) {
	for _, s := range d.last {
		to := view.Session{Protocol: s.Protocol, Name: s.Name, Router: s.Router, AS: s.AS, Up: s.Up && len(d.Sessions) > 0, State: s.State, Since: s.Since, Error: s.LastError}
		if len(d.Sessions) == 0 {
			to.State = "BIRD is away; it was " + s.State
		}
		for _, f := range s.Families {
			to.Imported += int64(f.Accepted)
			to.Exported += int64(f.Sent)
		}
		all = append(all, to)
	}
	return all
}

// kernelView is what the kernel has of flock's.
type kernelView struct {
	conn     *rtnl.Conn
	links    map[string]rtnl.Link
	names    map[int]string
	nexthops map[uint32]rtnl.Nexthop
	routes   []rtnl.Route
}

func readKernel(c *rtnl.Conn) (k kernelView, err error) {
	k = kernelView{conn: c, links: map[string]rtnl.Link{}, names: map[int]string{}, nexthops: map[uint32]rtnl.Nexthop{}}
	links, err := c.Links("")
	if err != nil {
		return k, err
	}
	for _, l := range links {
		k.links[l.Name], k.names[l.Index] = l, l.Name
	}
	nexthops, err := c.Nexthops()
	if err != nil {
		return k, err
	}
	for _, n := range nexthops {
		k.nexthops[n.ID] = n
	}
	k.routes, err = c.Routes(rtnl.RouteFilter{Proto: kernel.RouteProtocol})
	slices.SortStableFunc(k.routes, func(a, b rtnl.Route) int {
		if c := compareAddrs(a.Dst.Addr(), b.Dst.Addr()); c != 0 {
			return c
		}
		return int(a.Metric) - int(b.Metric)
	})
	return k, err
}

// linksOf are the links that packets take by a route.
func (k kernelView) linksOf(r rtnl.Route) (all []int) {
	switch {
	case r.Link != 0:
		return []int{r.Link}
	case r.Nexthop == 0:
		return r.Links
	}
	var visit func(id uint32)
	visit = func(id uint32) {
		n := k.nexthops[id]
		if n.Link != 0 {
			all = append(all, n.Link)
		}
		for _, m := range n.Group {
			visit(m.ID)
		}
	}
	visit(r.Nexthop)
	return all
}

// to is where a route leads, in the words of ip route.
func (k kernelView) to(r rtnl.Route) string {
	links := k.linksOf(r)
	if len(links) == 0 {
		return r.Type.String()
	}
	var names []string
	for _, l := range links {
		name := k.names[l]
		if name == "" {
			name = fmt.Sprint("link ", l)
		}
		names = append(names, name)
	}
	text := "dev " + strings.Join(names, ", ")
	if r.Gateway.IsValid() {
		text = "via " + r.Gateway.String() + " " + text
	}
	return text
}

type pathKey struct {
	link int
	addr netip.Addr
}

// podOf is a record with what the kernel has for it.
func (k kernelView) podOf(r ledger.Record, paths map[pathKey]anycast.Path) view.Pod {
	p := view.Pod{Namespace: r.Pod.Namespace, Name: r.Pod.Name, State: string(r.State), Container: r.ContainerID, Link: r.HostIf, MTU: r.MTU}
	if p.Name == "" {
		p.Name = "not Kubernetes"
	}
	wrong := func(format string, args ...any) { p.Problems = append(p.Problems, fmt.Sprintf(format, args...)) }
	for _, port := range r.HostPorts {
		p.Ports = append(p.Ports, fmt.Sprintf("%s %d to %d", port.Protocol, port.HostPort, port.ContainerPort))
	}
	link, there := k.links[r.HostIf]
	wired := r.State == ledger.Committed
	switch {
	case wired && !there:
		wrong("there is no link %s: the pod has no network, and gets one when it is deleted", r.HostIf)
	case wired && !link.Up:
		wrong("link %s is down: ip link set %s up", r.HostIf, r.HostIf)
	case wired && r.MTU != 0 && link.MTU != r.MTU:
		wrong("link %s has the MTU %d, and should have %d", r.HostIf, link.MTU, r.MTU)
	}
	add := func(kind string, of []address.Granted) {
		for _, g := range of {
			a := view.Address{Address: g.Addr.String(), Kind: kind, From: g.Pool}
			if kind == "own" && g.FromPool() {
				a.Kind = "pool"
			} else if !g.FromPool() {
				a.From = g.CIDR.String()
			}
			route, ok, err := k.conn.Lookup(g.Addr)
			switch {
			case errors.Is(err, unix.EINVAL):
				a.Route = rtnl.Blackhole.String() // as the kernel answers for such a route
			case err != nil:
				a.Route = err.Error()
			case !ok:
				a.Route = "no route"
			default:
				a.Route = k.to(route)
				a.Reaches = there && slices.Contains(k.linksOf(route), link.Index)
				a.Announced = route.Proto == kernel.RouteProtocol && route.Metric != kernel.MetricLocal
			}
			if kind == "anycast" {
				path, known := paths[pathKey{link.Index, g.Addr}]
				a.Announced = known && path.Announced
				if known && !path.Announced {
					a.Why = strings.TrimSuffix(string(path.Reason)+": "+path.Detail, ": ")
					a.Reaches = true // other pods may have it
				}
			}
			if wired && there && !a.Reaches {
				wrong("packets for %s do not reach the pod, the kernel's answer is %s: ip route get %s", a.Address, a.Route, a.Address)
			}
			p.Addresses = append(p.Addresses, a)
		}
	}
	add("own", r.Primary)
	add("own", r.Secondary)
	add("anycast", r.Anycast)
	return p
}

// purpose is what a route of flock's is there for.
func purpose(r rtnl.Route, holders map[netip.Addr]string) string {
	switch {
	case r.Metric == kernel.MetricService:
		return "a Service, announced"
	case r.Dst.IsSingleIP() && holders[r.Dst.Addr()] != "":
		what := "pod " + holders[r.Dst.Addr()]
		switch r.Metric {
		case kernel.MetricAnnounced:
			return what + ", anycast, announced"
		case kernel.MetricStatic:
			return what + ", announced"
		}
		return what
	case r.Type == rtnl.Unreachable:
		return "the summary of the node's pods, announced"
	}
	return ""
}
