package controller

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/service"
)

// world is what the API server has.
type world struct {
	services   *kube.Cache[*corev1.Service]
	pools      *kube.Cache[*v1alpha1.AddressPool]
	claims     *kube.Cache[*v1alpha1.AddressClaim]
	namespaces *kube.Cache[*corev1.Namespace]
	nodes      *kube.Cache[*corev1.Node]
	configs    *kube.Cache[*v1alpha1.NodeConfig]
	templates  *kube.Cache[*v1alpha1.NodeConfigTemplate]
	pods       *kube.Cache[*metav1.PartialObjectMetadata]

	// What wakes followers: wants is what Services ask for and may have, has who has which
	// address, and heard what is known of nodes and pods.
	wants, has, heard cell.Topic
	// templatesSeen counts the changes of templates.
	templatesSeen atomic.Int64

	log     *slog.Logger
	ignored map[string]bool // what observe has ignored last, and logged
}

func newWorld(c *kube.Client, log *slog.Logger) *world {
	w := &world{log: log, ignored: map[string]bool{}}
	w.services = c.Services(w.wants.Wake)
	w.pools = c.AddressPools(w.wants.Wake)
	w.namespaces = c.AllNamespaces(w.wants.Wake)
	w.claims = c.WholeClaims(func() { w.wants.Wake(); w.has.Wake() })
	w.configs = c.NodeConfigs(func() { w.has.Wake(); w.heard.Wake() })
	w.templates = c.NodeConfigTemplates(func() { w.templatesSeen.Add(1); w.has.Wake(); w.heard.Wake() })
	w.nodes = c.Nodes(func() { w.has.Wake(); w.heard.Wake() })
	w.pods = c.Pods([]string{annotation.Anycast, corev1.MirrorPodAnnotationKey}, w.heard.Wake)
	return w
}

// What follows implements source.

func (w *world) service(key service.Key) (*corev1.Service, bool) { return w.services.Get(key.String()) }

func (w *world) claim(name string) (*v1alpha1.AddressClaim, bool) { return w.claims.Get(name) }

func (w *world) notify(wants, has chan<- struct{}) {
	w.wants.Notify(wants)
	w.has.Notify(has)
	w.heard.Notify(has)
}

func (w *world) caches() []func(context.Context) {
	return []func(context.Context){w.services.Run, w.pools.Run, w.claims.Run, w.namespaces.Run, w.nodes.Run, w.configs.Run, w.templates.Run, w.pods.Run}
}

// missing names the kinds of which not all objects are there.
func (w *world) missing() (kinds []string) {
	for kind, synced := range map[string]func() bool{
		"Services": w.services.Synced, "AddressPools": w.pools.Synced, "AddressClaims": w.claims.Synced, "Namespaces": w.namespaces.Synced,
		"Nodes": w.nodes.Synced, "NodeConfigs": w.configs.Synced, "NodeConfigTemplates": w.templates.Synced, "Pods": w.pods.Synced,
	} {
		if !synced() {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// await returns when all objects are there, or false when ctx ends.
func (w *world) await(ctx context.Context, log *slog.Logger) bool {
	warn := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := w.missing()
		if len(missing) == 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case now := <-tick.C:
			if now.After(warn) {
				log.Warn("waiting for the caches to sync; no address is assigned until then", "missing", strings.Join(missing, ", "))
				warn = now.Add(time.Minute)
			}
		}
	}
}

// validPools are the pools without a fault, by name.
func (w *world) validPools() (pools []config.Pool) {
	for _, ap := range w.pools.List() {
		if p, err := config.ParsePool(ap); err == nil {
			pools = append(pools, p)
		}
	}
	slices.SortFunc(pools, func(a, b config.Pool) int { return strings.Compare(a.Name, b.Name) })
	return pools
}

// observed is one look at everything.
type observed struct {
	service.World
	objects map[service.Key]*corev1.Service // all
	claims  map[netip.Addr]*v1alpha1.AddressClaim
}

func (w *world) observe(classless bool) observed {
	o := observed{
		World: service.World{
			Pools: w.validPools(), Namespaces: map[string]labels.Set{},
			Claims: map[netip.Addr]service.Claim{}, Taken: map[netip.Addr]string{},
		},
		objects: map[service.Key]*corev1.Service{}, claims: map[netip.Addr]*v1alpha1.AddressClaim{},
	}
	for _, ns := range w.namespaces.List() {
		set := labels.Set(ns.Labels)
		if set == nil {
			set = labels.Set{}
		}
		o.Namespaces[ns.Name] = set
	}
	for _, c := range w.claims.List() {
		if addr, err := netip.ParseAddr(c.Spec.Address); err == nil {
			o.claims[addr] = c
			o.Claims[addr] = claimOf(c)
		}
	}
	for _, svc := range w.services.List() {
		key := service.Key{Namespace: svc.Namespace, Name: svc.Name}
		o.objects[key] = svc
		if service.Managed(svc, classless) {
			o.Services = append(o.Services, service.Parse(svc))
		} else {
			for _, h := range service.Held(svc) {
				o.Taken[h.Addr] = fmt.Sprintf("an address of Service %s, which is of another load balancer class", key)
			}
		}
		for _, text := range svc.Spec.ClusterIPs {
			if a, err := netaddr.ParseLoosely(text); err == nil {
				o.Taken[a] = fmt.Sprintf("the clusterIP of Service %s", key)
			}
		}
		for _, a := range service.ExternalIPs(svc) {
			// Of those that no pool allows anybody could make any number.
			if pool, _, _ := service.ExternalIP(a, svc.Namespace, o.Namespaces[svc.Namespace], o.Pools); pool != "" {
				o.Taken[a] = fmt.Sprintf("in spec.externalIPs of Service %s", key)
			}
		}
	}
	w.observeNodes(&o)
	return o
}

// observeNodes enters what nodes, their routers and their pods have.
func (w *world) observeNodes(o *observed) {
	take := func(text, what string, args ...any) {
		if a, err := netip.ParseAddr(text); err == nil {
			o.Taken[a] = fmt.Sprintf(what, args...)
		}
	}
	block := func(cidr, node string) {
		if p, err := netip.ParsePrefix(cidr); err == nil {
			r := service.Range{Prefix: p.Masked(), What: fmt.Sprintf("the pod CIDR %s of node %s", cidr, node)}
			if !slices.Contains(o.Ranges, r) {
				o.Ranges = append(o.Ranges, r)
			}
		}
	}
	// A request that no pool grants takes nothing, nor does one for more addresses than any
	// node gives a pod: a pod that never starts could keep a whole pool from Services.
	most := w.maxAddresses()
	for _, p := range w.pods.List() {
		_, wanted := annotation.Lists(p.Annotations)
		if len(wanted) > most {
			continue
		}
		for _, a := range wanted {
			if grantsAnycast(o.Pools, a, o.Namespaces[p.Namespace]) {
				o.Taken[a] = fmt.Sprintf("an anycast address of pod %s/%s", p.Namespace, p.Name)
			}
		}
	}
	ignored := map[string]bool{}
	for _, nc := range w.configs.List() {
		// What an agent writes must not take more than its node has: NodeConfigs from templates
		// have the Node's pod CIDRs, which follow below, and each status is the agent's.
		if !fleet.Templated(nc) {
			for _, c := range slices.Concat(nc.Spec.PodCIDRs.IPv6, nc.Spec.PodCIDRs.IPv4) {
				block(string(c), nc.Name)
			}
		}
		for _, c := range nc.Status.RetiredCIDRs {
			if pool := overlaps(o.Pools, c); pool != "" {
				ignored[nc.Name+" "+c+" "+pool] = true
				w.ignore(nc.Name, c, pool)
			} else {
				block(c, nc.Name)
			}
		}
		if nc.Spec.BGP != nil {
			for _, p := range nc.Spec.BGP.Peers {
				take(string(p.Address), "the address of BGP peer %s of node %s", p.Name, nc.Name)
			}
		}
		for _, a := range nc.Status.Anycast {
			if addr, err := netip.ParseAddr(a.Address); err == nil && slices.ContainsFunc(config.Deciding(o.Pools, addr), func(p config.Pool) bool { return p.Anycast }) {
				take(a.Address, "an anycast address of pod %s on node %s", a.Pod, nc.Name)
			}
		}
	}
	w.ignored = ignored
	for _, n := range w.nodes.List() {
		for _, c := range n.Spec.PodCIDRs {
			block(c, n.Name)
		}
		for _, a := range n.Status.Addresses {
			take(a.Address, "an address of node %s", n.Name)
		}
	}
	slices.SortFunc(o.Ranges, func(a, b service.Range) int { return strings.Compare(a.What, b.What) })
}

// overlaps returns a pool for Services of which a CIDR contains addresses; "" if there is none.
func overlaps(pools []config.Pool, cidr string) string {
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil {
		return ""
	}
	for _, p := range pools {
		if p.Service && slices.ContainsFunc(p.CIDRs, prefix.Overlaps) {
			return p.Name
		}
	}
	return ""
}

// ignore logs that a retired CIDR counts for nothing, unless it did at the last look.
func (w *world) ignore(node, cidr, pool string) {
	if what := node + " " + cidr + " " + pool; !w.ignored[what] {
		w.log.Warn("ignoring a retired pod CIDR, as it overlaps an AddressPool for Services: give the pool other CIDRs, or end the node's pods with addresses of it", "node", node, "cidr", cidr, "pool", pool)
	}
}

// maxAddresses is how many addresses a pod may have on the node that allows the most, as far
// as people have written NodeConfigs: those from templates are written by agents.
func (w *world) maxAddresses() int {
	most := config.DefaultMaxAddresses
	for _, nc := range w.configs.List() {
		if !fleet.Templated(nc) {
			most = max(most, int(nc.Spec.MaxAddressesPerPod))
		}
	}
	return most
}

func grantsAnycast(pools []config.Pool, addr netip.Addr, namespace labels.Set) bool {
	return slices.ContainsFunc(config.Deciding(pools, addr), func(p config.Pool) bool { return p.Anycast && p.Admits(namespace) })
}

func claimOf(c *v1alpha1.AddressClaim) service.Claim {
	if c.Spec.PodUID != "" {
		pod := fmt.Sprintf("pod %s/%s on node %s", c.Spec.PodNamespace, c.Spec.PodName, c.Spec.NodeName)
		if until := c.Spec.QuarantinedUntil; until != nil {
			pod += ", which does not have it any more, in quarantine until " + until.UTC().Format(time.RFC3339)
		}
		return service.Claim{Pod: pod}
	}
	var out service.Claim
	for _, s := range c.Spec.Services {
		out.Services = append(out.Services, shareOf(s))
	}
	return out
}

func shareOf(s v1alpha1.ServiceClaim) service.Share {
	share := service.Share{Key: service.Key{Namespace: s.Namespace, Name: s.Name}, UID: types.UID(s.UID)}
	for _, text := range s.Ports {
		if p, err := service.ParsePort(text); err == nil {
			share.Ports = append(share.Ports, p)
		}
	}
	return share
}
