package flockctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

var serviceCommand = command{
	name: "service", args: "[[NAMESPACE/]NAME]",
	short: "Show the addresses of Services: the pool, which nodes announce them, and why others do not",
	long: `Without a name there is a line for each address of the Services to which flock gives
addresses, and for each other one that nodes report: external IPs, and ClusterIPs if
NodeConfigs announce them. WHY NOT has the nodes that do not announce it, by reason; a
Service without an address has the reason there. With a name: what the Service asked
for and got, and a line for each address and node. What nodes do is what their agents
wrote last.`,
	examples: `flockctl service
flockctl service shop/front
flockctl services -o wide
flockctl services -o json | jq -r '.[] | select(.addresses[]?.nodes | all(.announced | not)) | .service'`,
	flags: []string{"output", "watch"}, max: 1, wide: true,
	run: runService,
}

// serviceInfo is a Service and what is known of its addresses.
type serviceInfo struct {
	Service string `json:"service"`
	// Deleted: nodes report addresses of a Service that is not there any more.
	Deleted bool               `json:"deleted,omitempty"`
	Type    corev1.ServiceType `json:"type,omitempty"`
	Class   string             `json:"class,omitempty"`
	// Policy and InternalPolicy are the traffic policies.
	Policy         string   `json:"externalTrafficPolicy,omitempty"`
	InternalPolicy string   `json:"internalTrafficPolicy,omitempty"`
	Families       []string `json:"ipFamilies,omitempty"`
	Ports          []string `json:"ports,omitempty"`
	// Conditions are flock-controller's.
	Conditions []metav1.Condition   `json:"conditions,omitempty"`
	Addresses  []serviceAddressInfo `json:"addresses"`

	managed bool // flock-controller gives it addresses
}

// serviceAddressInfo is an address of a Service.
type serviceAddressInfo struct {
	Address string `json:"address"`
	// Kind is LoadBalancer, ExternalIP or ClusterIP; empty: the Service does not have it
	// any more.
	Kind string `json:"kind,omitempty"`
	// Pool is the AddressPool that grants it; several if they have the same prefix.
	Pool  string        `json:"pool,omitempty"`
	Nodes []serviceNode `json:"nodes"`
}

// serviceNode is what a node does with an address.
type serviceNode struct {
	Node      string `json:"node"`
	Announced bool   `json:"announced"`
	// Prefix is what is announced in place of the address, if the pool is aggregated.
	Prefix  string    `json:"prefix,omitempty"`
	Reason  string    `json:"reason"`
	Message string    `json:"message,omitempty"`
	Since   time.Time `json:"since,omitzero"`
}

// mostServices is how many addresses of Services the status of a node holds.
const mostServices = 256

// What flockctl says of nodes that do not report an address.
const (
	notReported = "NotReported"
	fullStatus  = "StatusIsFull"
)

func runService(ctx context.Context, s *session, args []string) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	var only string
	var objects []corev1.Service
	if len(args) == 1 {
		namespace, name, ok := strings.Cut(args[0], "/")
		if !ok {
			namespace, name = c.namespace, args[0]
		}
		if namespace == "" || name == "" || strings.Contains(name, "/") {
			return usageError(fmt.Sprintf("%q is no Service: want NAMESPACE/NAME, or NAME in the namespace of --namespace or the context", args[0]))
		}
		only = namespace + "/" + name
		svc := &corev1.Service{}
		switch err := c.get(ctx, c.core, "services", namespace, name, svc); {
		case err == nil:
			objects = append(objects, *svc)
		case !errors.Is(err, errNotFound):
			return err
		}
	} else {
		list := &corev1.ServiceList{}
		if err := c.list(ctx, c.core, "services", "", "", "", list); err != nil {
			return err
		}
		objects = list.Items
	}
	configs, err := c.nodeConfigs(ctx)
	if err != nil {
		return err
	}
	pools, err := c.pools(ctx)
	if err != nil {
		return err
	}
	infos := servicesOf(objects, configs, pools)
	if only == "" {
		infos = slices.DeleteFunc(infos, func(i serviceInfo) bool { return !i.managed && !i.reported() })
		if s.output != "" {
			return s.structured(infos)
		}
		c.remarkSilent(ctx, s.remarks, configs)
		s.printServices(s.out, infos, configs)
		return nil
	}
	infos = slices.DeleteFunc(infos, func(i serviceInfo) bool { return i.Service != only })
	if len(infos) == 0 {
		namespace, name, _ := strings.Cut(only, "/")
		return c.absent(ctx, "no Service", "services", namespace, name)
	}
	if s.output != "" {
		return s.structured(infos[0])
	}
	c.remarkSilent(ctx, s.remarks, configs)
	s.printService(s.out, infos[0], pools)
	return nil
}

// servicesOf are all Services, by name. It is pure.
func servicesOf(objects []corev1.Service, configs []v1alpha1.NodeConfig, pools []v1alpha1.AddressPool) []serviceInfo {
	var valid []config.Pool
	for i := range pools {
		if p, err := config.ParsePool(&pools[i]); err == nil {
			valid = append(valid, p)
		}
	}
	poolOf := func(address string) string {
		addr, err := netip.ParseAddr(address)
		if err != nil {
			return ""
		}
		var names []string
		for _, p := range config.Deciding(valid, addr) {
			if p.Service {
				names = append(names, p.Name)
			}
		}
		return strings.Join(names, ",")
	}
	infos := []serviceInfo{}
	at := map[string]int{}
	for i := range objects {
		info := serviceInfoOf(&objects[i])
		at[info.Service] = len(infos)
		infos = append(infos, info)
	}
	for _, nc := range configs {
		for _, st := range nc.Status.Services {
			i, ok := at[st.Service]
			if !ok {
				i = len(infos)
				at[st.Service] = i
				infos = append(infos, serviceInfo{Service: st.Service, Deleted: true})
			}
			info := &infos[i]
			if !slices.ContainsFunc(info.Addresses, func(a serviceAddressInfo) bool { return a.Address == st.Address }) {
				info.Addresses = append(info.Addresses, serviceAddressInfo{Address: st.Address, Kind: info.kindOf(objects, st.Address)})
			}
		}
	}
	slices.SortFunc(infos, func(a, b serviceInfo) int { return strings.Compare(a.Service, b.Service) })
	for i := range infos {
		info := &infos[i]
		slices.SortFunc(info.Addresses, func(a, b serviceAddressInfo) int { return byAddress(a.Address, b.Address) })
		if info.Addresses == nil {
			info.Addresses = []serviceAddressInfo{}
		}
		for j := range info.Addresses {
			a := &info.Addresses[j]
			if a.Kind != string(v1alpha1.ServiceClusterIP) {
				a.Pool = poolOf(a.Address)
			}
			a.Nodes = nodesAt(configs, info.Service, a.Address)
		}
	}
	return infos
}

// serviceInfoOf is what the object says. Its ClusterIPs are not among the addresses: most
// nodes do not announce them.
func serviceInfoOf(svc *corev1.Service) serviceInfo {
	info := serviceInfo{Service: svc.Namespace + "/" + svc.Name, Type: svc.Spec.Type, Policy: string(svc.Spec.ExternalTrafficPolicy)}
	if p := svc.Spec.InternalTrafficPolicy; p != nil {
		info.InternalPolicy = string(*p)
	}
	if svc.Spec.LoadBalancerClass != nil {
		info.Class = *svc.Spec.LoadBalancerClass
	}
	for _, f := range svc.Spec.IPFamilies {
		info.Families = append(info.Families, string(f))
	}
	for _, p := range svc.Spec.Ports {
		info.Ports = append(info.Ports, fmt.Sprintf("%d/%s", p.Port, cmp.Or(p.Protocol, corev1.ProtocolTCP)))
	}
	for _, c := range svc.Status.Conditions {
		if c.Type == v1alpha1.ServiceAddressAssigned || c.Type == v1alpha1.ServiceExternalIPsAdmitted {
			info.Conditions = append(info.Conditions, c)
		}
	}
	assigned := meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ServiceAddressAssigned) != nil
	info.managed = svc.Spec.Type == corev1.ServiceTypeLoadBalancer && (info.Class == v1alpha1.LoadBalancerClass || info.Class == "" && assigned)
	if info.managed {
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if in.IP != "" {
				info.Addresses = append(info.Addresses, serviceAddressInfo{Address: in.IP, Kind: string(v1alpha1.ServiceLoadBalancer)})
			}
		}
	}
	return info
}

// kindOf says what an address is to the Service that a node reports it for.
func (i *serviceInfo) kindOf(objects []corev1.Service, address string) string {
	for k := range objects {
		svc := &objects[k]
		if svc.Namespace+"/"+svc.Name != i.Service {
			continue
		}
		for _, text := range svc.Spec.ExternalIPs {
			if byAddress(text, address) == 0 {
				return string(v1alpha1.ServiceExternalIP)
			}
		}
		for _, text := range svc.Spec.ClusterIPs {
			if byAddress(text, address) == 0 {
				return string(v1alpha1.ServiceClusterIP)
			}
		}
	}
	return ""
}

// reported says whether a node reports an address of the Service.
func (i serviceInfo) reported() bool {
	return slices.ContainsFunc(i.Addresses, func(a serviceAddressInfo) bool {
		return slices.ContainsFunc(a.Nodes, func(n serviceNode) bool { return n.Reason != notReported && n.Reason != fullStatus })
	})
}

// nodesAt is what each node does with an address, by node.
func nodesAt(configs []v1alpha1.NodeConfig, service, address string) []serviceNode {
	nodes := []serviceNode{}
	for _, nc := range configs {
		n := serviceNode{Node: nc.Name, Reason: notReported, Message: "its agent has not reported the address"}
		if len(nc.Status.Services) >= mostServices {
			n.Reason, n.Message = fullStatus, fmt.Sprintf("its status holds %d addresses, those that are not announced first: the node announces it, or does not know it", mostServices)
		}
		for _, st := range nc.Status.Services {
			if st.Service == service && st.Address == address {
				n = serviceNode{nc.Name, st.Announced, st.Prefix, st.Reason, st.Message, st.Since.Time}
			}
		}
		if ready := meta.FindStatusCondition(nc.Status.Conditions, "Ready"); ready != nil && ready.Status == metav1.ConditionUnknown {
			n.Message = strings.TrimPrefix(n.Message+"; this is old: "+or(ready.Message, "nothing is heard of the node"), "; ")
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b serviceNode) int { return strings.Compare(a.Node, b.Node) })
	return nodes
}

// announcing are the nodes that announce an address, and whyNot says of the others why they do
// not, the reason of most of them first.
func (a serviceAddressInfo) announcing() (nodes []string, whyNot string) {
	by := map[string][]string{}
	for _, n := range a.Nodes {
		if n.Announced {
			nodes = append(nodes, n.Node)
		} else {
			by[n.Reason] = append(by[n.Reason], n.Node)
		}
	}
	var reasons []string
	for reason, of := range by {
		reasons = append(reasons, reason+" ("+summary(of)+")")
	}
	slices.SortFunc(reasons, func(a, b string) int {
		x, _, _ := strings.Cut(a, " ")
		y, _, _ := strings.Cut(b, " ")
		return cmp.Or(len(by[y])-len(by[x]), strings.Compare(x, y))
	})
	return nodes, strings.Join(reasons, ", ")
}

// summary names a few nodes.
func summary(nodes []string) string {
	const most = 3
	if len(nodes) <= most {
		return strings.Join(nodes, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(nodes[:most-1], " "), len(nodes)-most+1)
}

// withoutAddress says why a Service has no address.
func (i serviceInfo) withoutAddress() string {
	for _, c := range i.Conditions {
		if c.Type == v1alpha1.ServiceAddressAssigned && c.Status != metav1.ConditionTrue {
			return or(c.Message, c.Reason)
		}
	}
	return "flock-controller has not decided yet: kubectl -n " + flockNamespace + " get deployment flock-controller"
}

func (s *session) printServices(w io.Writer, infos []serviceInfo, configs []v1alpha1.NodeConfig) {
	if len(infos) == 0 {
		fmt.Fprintln(w, "No Service has an address of flock: see docs/services.md for how one gets it.")
		return
	}
	header := []string{"SERVICE", "ADDRESS", "POOL", "POLICY", "ANNOUNCED"}
	if s.wide {
		header = append(header, "KIND", "PORTS", "AS")
	}
	rows := [][]string{append(header, "NODES", "WHY NOT")}
	for _, i := range infos {
		if len(i.Addresses) == 0 {
			row := []string{i.Service, none, none, or(i.Policy, none), none}
			if s.wide {
				row = append(row, none, or(join(i.Ports, " "), none), none)
			}
			rows = append(rows, append(row, none, i.withoutAddress()))
		}
		for _, a := range i.Addresses {
			nodes, whyNot := a.announcing()
			row := []string{i.Service, a.Address, or(a.Pool, none), or(i.policyOf(a), none), fmt.Sprintf("%d/%d", len(nodes), len(a.Nodes))}
			if s.wide {
				row = append(row, or(a.Kind, none), or(join(i.Ports, " "), none), a.announcedAs())
			}
			switch {
			case i.Deleted:
				whyNot = "the Service is deleted"
			case a.Kind == "":
				whyNot = "the Service does not have it any more"
			}
			rows = append(rows, append(row, or(summary(nodes), none), or(whyNot, none)))
		}
	}
	table(w, "", rows)
	for _, nc := range configs {
		if len(nc.Status.Services) >= mostServices {
			fmt.Fprintf(w, "\nNode %s may announce more: its status holds %d addresses, those that are not announced first.\n", nc.Name, mostServices)
		}
	}
}

// policyOf is the traffic policy that decides about an address.
func (i serviceInfo) policyOf(a serviceAddressInfo) string {
	if a.Kind == string(v1alpha1.ServiceClusterIP) {
		return i.InternalPolicy
	}
	return i.Policy
}

// announcedAs is the prefix that stands for the address at the routers.
func (a serviceAddressInfo) announcedAs() string {
	for _, n := range a.Nodes {
		if n.Announced {
			return or(n.Prefix, a.Address)
		}
	}
	return none
}

func (s *session) printService(w io.Writer, i serviceInfo, pools []v1alpha1.AddressPool) {
	rows := [][]string{{"Service", i.Service}}
	if i.Deleted {
		rows[0][1] += " (deleted)"
	} else {
		kind := string(i.Type)
		if i.Class != "" {
			kind += " of class " + i.Class
		}
		rows = append(rows, []string{"Type", or(kind, none)}, []string{"Ports", or(join(i.Ports, " "), none)}, []string{"Families", or(join(i.Families, " "), none)}, []string{"Policy", or(i.Policy, none)})
		if i.InternalPolicy != "" {
			rows = append(rows, []string{"Inside", i.InternalPolicy})
		}
	}
	for _, c := range i.Conditions {
		_, name, _ := strings.Cut(c.Type, "/")
		text := string(c.Status) + ": " + c.Reason
		if c.Message != "" {
			text += ": " + c.Message
		}
		rows = append(rows, []string{name, text})
	}
	if len(i.Addresses) == 0 {
		why := "none that flock announces: it is of another type or class (docs/services.md)"
		if i.managed {
			why = "none: " + i.withoutAddress()
		}
		table(w, "", append(rows, []string{"Address", why}))
		return
	}
	table(w, "", rows)
	fmt.Fprintln(w)
	rows = [][]string{{"ADDRESS", "KIND", "NODE", "ANNOUNCED", "SINCE", "WHY"}}
	for _, a := range i.Addresses {
		for _, n := range a.Nodes {
			announced := yesNo(n.Announced)
			if n.Announced && n.Prefix != "" {
				announced += ", as " + n.Prefix
			}
			why := n.Reason
			if n.Message != "" {
				why += ": " + n.Message
			}
			rows = append(rows, []string{a.Address, or(a.Kind, none), n.Node, announced, s.age(n.Since), why})
		}
	}
	table(w, "", rows)
	fmt.Fprintln(w)
	for _, a := range i.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if err != nil || a.Kind == string(v1alpha1.ServiceClusterIP) {
			continue
		}
		for _, line := range describePools(pools, addr) {
			fmt.Fprintf(w, "%s: %s\n", a.Address, line)
		}
	}
}
