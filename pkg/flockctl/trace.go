package flockctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

var traceCommand = command{
	name: "trace", args: "FROM TO [PORT[/PROTOCOL]]",
	short: "Say whether FROM may open a connection to TO, by which policies, and which way it takes",
	long: `FROM and TO are each a pod ([NAMESPACE/]NAME), a Service (svc/[NAMESPACE/]NAME, or its
address) or an address. [NAMESPACE/]NAME is the Service of that name if there is no
such pod. PORT is a number or a name, PROTOCOL is TCP (the default), UDP or SCTP; icmp
asks about ping. Without PORT, all ports of the Service are asked about, or all that the
pod's containers declare, or ping if there are none.

A connection needs both sides: the egress policies of FROM on its node, and the ingress
policies of TO on its node. Each line says which rule decides. With a Service it is
about each endpoint that the connection may go to.

The answer is what the objects at the API server come to. It says so where a node's
agent does not report that it has them in force. With --agents, each side's agent is
asked what it has in force: that takes the right to pods/exec in flock's namespace.

The exit status is 0 if all that is asked about is allowed, 3 if something of it is
denied, 1 if that cannot be found out.`,
	examples: `flockctl trace shop/web-0 shop/db-0 5432
flockctl trace shop/web-0 svc/shop/db
flockctl trace web-0 2001:db8::53 53/UDP -n shop
flockctl trace 192.0.2.7 shop/web-0 https
flockctl trace shop/web-0 shop/db-0 5432 --agents
flockctl trace shop/web-0 shop/db-0 5432 -o json | jq -r '.connections[] | select(.allowed | not)'`,
	flags: []string{"output", "watch", "agents"}, min: 2, max: 3,
	run: runTrace,
}

// errDenied says by the exit status what the answer has said.
var errDenied = errors.New("denied")

func runTrace(ctx context.Context, s *session, args []string) error {
	port, err := parsePort(slices.Concat(args, []string{""})[2])
	if err != nil {
		return err
	}
	c, err := s.connect()
	if err != nil {
		return err
	}
	r := &reading{cluster: c, facts: policyFacts{policies: map[string]bool{}}}
	if err := r.readCluster(ctx); err != nil {
		return err
	}
	from, err := r.target(ctx, "FROM", args[0])
	if err != nil {
		return err
	}
	to, err := r.target(ctx, "TO", args[1])
	if err != nil {
		return err
	}
	if err := r.readPolicies(ctx, from, to); err != nil {
		return err
	}
	answer, err := answerTrace(&r.facts, from, to, port)
	if err != nil {
		return err
	}
	if s.agents {
		r.askAgents(ctx, s, answer)
	}
	if s.output != "" {
		err = s.structured(answer)
	} else {
		printTrace(s.out, answer)
	}
	if err == nil && !answer.Allowed {
		err = errDenied
	}
	return err
}

// traceAnswer is what there is to say of a trace.
type traceAnswer struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Allowed bool   `json:"allowed"` // all connections
	// Service says what the connection is sent to, if TO is a Service.
	Service     *serviceAnswer `json:"service,omitempty"`
	Connections []attempt      `json:"connections"`
	Notes       []string       `json:"notes,omitempty"`
}

type serviceAnswer struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses,omitempty"`
	Ports     []string `json:"ports"`
}

// attempt is a connection that FROM may try to open, from one address to another.
type attempt struct {
	From     end    `json:"from"`
	To       end    `json:"to"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
	// ServicePort is what it is opened to, if that is a Service.
	ServicePort string    `json:"servicePort,omitempty"`
	Allowed     bool      `json:"allowed"`
	Egress      traceSide `json:"egress"`
	Ingress     traceSide `json:"ingress"`
	Route       route     `json:"route"`
}

// end is one end of a connection.
type end struct {
	Pod     string `json:"pod,omitempty"`
	Node    string `json:"node,omitempty"` // of the pod, or the node itself
	Address string `json:"address"`
	pod     *corev1.Pod
	addr    netip.Addr
	// hostNetwork pods are their node.
	hostNetwork bool
}

// judged says whether policies can select the end.
func (e end) judged() bool { return e.pod != nil && !e.hostNetwork }

func (e end) String() string {
	switch {
	case e.pod != nil && e.Node != "":
		return e.Pod + " on " + e.Node
	case e.pod != nil:
		return e.Pod
	case e.Node != "":
		return "node " + e.Node
	}
	return e.Address + " outside of the cluster"
}

// traceSide is what one end's policies say.
type traceSide struct {
	// Judged: there is a pod whose policies are asked.
	Judged bool `json:"judged"`
	policy.Verdict
	Reason string `json:"reason"`
	// InForce is what the agent says of it; empty if it was not asked.
	InForce  string `json:"inForce,omitempty"`
	question policy.Question
}

// text is the reason, and what is in force.
func (s traceSide) text() string {
	if s.InForce == "" {
		return s.Reason
	}
	return s.Reason + " (" + s.InForce + ")"
}

// want is the port that is asked about. Its zero value is all that there are.
type want struct {
	name   string
	number uint16
	proto  uint8 // 0: not given
}

var protocols = map[string]uint8{"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}

func protocolName(proto uint8) string {
	for name, number := range protocols {
		if number == proto {
			return name
		}
	}
	return fmt.Sprint("protocol ", proto)
}

const icmp, icmpv6 = 1, 58

// parsePort reads PORT/PROTOCOL.
func parsePort(text string) (w want, err error) {
	if text == "" {
		return w, nil
	}
	if strings.EqualFold(text, "icmp") || strings.EqualFold(text, "ping") {
		return want{proto: icmp}, nil
	}
	port, protocol, given := strings.Cut(text, "/")
	if given {
		if w.proto = protocols[strings.ToUpper(protocol)]; w.proto == 0 || w.proto == icmp {
			return w, usageError(fmt.Sprintf("%q: want PORT/TCP, PORT/UDP or PORT/SCTP, or icmp", text))
		}
	}
	if number, err := strconv.ParseUint(port, 10, 16); err == nil && number > 0 {
		w.number = uint16(number)
	} else if err == nil || port == "" || port[0] == '-' || port[0] >= '0' && port[0] <= '9' {
		return w, usageError(fmt.Sprintf("%q: want a port within 1 to 65535, or the name of one", text))
	} else {
		w.name = port
	}
	return w, nil
}

// flow is a connection to be judged.
type flow struct {
	from, to    end
	proto       uint8
	port        uint16
	servicePort string
}

func answerTrace(f *policyFacts, from, to target, w want) (*traceAnswer, error) {
	a := &traceAnswer{From: from.String(), To: to.String(), Connections: []attempt{}}
	var flows []flow
	var err error
	if to.service != nil {
		flows, err = f.serviceFlows(a, from, to, w)
	} else {
		flows, err = f.directFlows(a, from, to, w)
	}
	if err != nil {
		return nil, err
	}
	x := f.index(from, to)
	a.Allowed = true
	for _, fl := range flows {
		c := f.judge(x, fl)
		a.Allowed = a.Allowed && c.Allowed
		a.Connections = append(a.Connections, c)
	}
	a.Notes = append(a.Notes, f.agentNotes(a.Connections)...)
	return a, nil
}

func (a *traceAnswer) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(a.Notes, n) {
		a.Notes = append(a.Notes, n)
	}
}

// directFlows are those to the addresses of a target that is no Service.
func (f *policyFacts) directFlows(a *traceAnswer, from, to target, w want) (flows []flow, err error) {
	sources, targets := f.ends(from), f.ends(to)
	elsewhere := func(e end) bool { return e.pod == nil && e.Node == "" }
	if slices.ContainsFunc(sources, elsewhere) && slices.ContainsFunc(targets, elsewhere) {
		return nil, fmt.Errorf("neither %s nor %s is of this cluster: want a pod, a Service, or an address of one, at one end at least", from.addr, to.addr)
	}
	targets = f.reached(a, sources, targets)
	for _, t := range targets {
		ports, err := portsOf(t, w)
		if err != nil {
			return nil, err
		}
		if len(ports) == 1 && ports[0].proto == icmp && w == (want{}) {
			a.note("no port was given, and none is known: it is about ping. Add PORT or PORT/PROTOCOL")
		}
		for _, s := range sources {
			if s.addr.Is4() != t.addr.Is4() {
				continue
			}
			for _, p := range ports {
				flows = append(flows, flow{from: s, to: t, proto: p.proto, port: p.number})
			}
		}
	}
	if len(flows) == 0 {
		return nil, fmt.Errorf("%s and %s have no addresses of the same family: %s; %s", from, to, addressesOf(sources), addressesOf(targets))
	}
	return flows, nil
}

// reached are those of the holders of an anycast address that get packets for it: those
// that are announced, and of these the ones of the sender's node if it has any.
func (f *policyFacts) reached(a *traceAnswer, sources, targets []end) []end {
	announced := slices.DeleteFunc(slices.Clone(targets), func(e end) bool { return !f.announces(e) })
	if len(announced) == 0 {
		return targets
	}
	if n := len(targets) - len(announced); n > 0 {
		a.note("%d pod(s) hold %s and are not announced: flockctl anycast %s", n, targets[0].Address, targets[0].Address)
	}
	near := slices.DeleteFunc(slices.Clone(announced), func(e end) bool {
		return !slices.ContainsFunc(sources, func(s end) bool { return s.Node == e.Node })
	})
	if len(near) > 0 && len(near) < len(announced) && len(sources) > 0 {
		a.note("%s is announced by other nodes too; node %s delivers to its own pods", targets[0].Address, near[0].Node)
		return near
	}
	return announced
}

// announces says whether a pod is announced at an anycast address.
func (f *policyFacts) announces(e end) bool {
	for _, nc := range f.configs {
		for _, path := range nc.Status.Anycast {
			if path.Address == e.Address && path.Pod == e.Pod && path.Announced {
				return true
			}
		}
	}
	return false
}

func addressesOf(ends []end) string {
	var out []string
	for _, e := range ends {
		out = append(out, e.Address)
	}
	return or(strings.Join(out, " "), "none")
}

// portsOf are the ports of an end that are asked about.
func portsOf(e end, w want) (out []want, err error) {
	switch {
	case w.proto == icmp:
		return []want{w}, nil
	case w.number > 0:
		if w.proto == 0 {
			w.proto = protocols["TCP"]
		}
		return []want{w}, nil
	}
	var names []string
	if e.pod != nil {
		for _, c := range slices.Concat(e.pod.Spec.InitContainers, e.pod.Spec.Containers) {
			for _, p := range c.Ports {
				proto := protocols[or(string(p.Protocol), "TCP")]
				if p.Name != "" {
					names = append(names, p.Name)
				}
				if w.name == "" || p.Name == w.name && (w.proto == 0 || w.proto == proto) {
					out = append(out, want{number: uint16(p.ContainerPort), proto: proto})
				}
			}
		}
	}
	switch {
	case len(out) > 0:
		slices.SortFunc(out, func(a, b want) int { return int(a.number)<<8 + int(a.proto) - int(b.number)<<8 - int(b.proto) })
		return slices.Compact(out), nil
	case w.name != "":
		return nil, fmt.Errorf("%s has no port named %q: it has %s", e, w.name, or(strings.Join(names, ", "), "none with a name"))
	}
	return []want{{proto: icmp}}, nil
}

// judge asks both sides about a connection.
func (f *policyFacts) judge(x *policy.Index, fl flow) attempt {
	c := attempt{From: fl.from, To: fl.to, Protocol: protocolName(fl.proto), Port: fl.port, ServicePort: fl.servicePort, Route: f.route(fl.from, fl.to)}
	proto := fl.proto
	if proto == icmp && fl.to.addr.Is6() {
		proto = icmpv6
	}
	sameNode := fl.from.Node != "" && fl.from.Node == fl.to.Node
	notJudged := func(why string) traceSide { return traceSide{Verdict: policy.Verdict{Allowed: true}, Reason: why} }
	side := func(own, other end, d policy.Direction) traceSide {
		switch {
		case own.judged() && other.judged() && own.Pod == other.Pod:
			return notJudged("not judged: a pod to itself")
		case own.hostNetwork:
			return notJudged("not judged: it is in the network of its node, which no policy selects")
		case own.pod == nil && own.Node != "":
			return notJudged("not judged: no policy selects a node")
		case own.pod == nil:
			return notJudged("not judged: no pod of the cluster")
		case d == policy.Ingress && sameNode && !other.judged():
			return notJudged("not judged: a node always reaches its own pods")
		}
		q := policy.Question{
			Namespace: own.pod.Namespace, Name: own.pod.Name, UID: string(own.pod.UID), Direction: d,
			ToNode: d == policy.Egress && sameNode && !other.judged(), Peer: other.addr, Protocol: proto, Port: fl.port,
		}
		v := x.Explain(q)[0]
		return traceSide{Judged: true, Verdict: v, Reason: v.Reason(), question: q}
	}
	c.Egress = side(fl.from, fl.to, policy.Egress)
	c.Ingress = side(fl.to, fl.from, policy.Ingress)
	c.Allowed = c.Egress.Allowed && c.Ingress.Allowed
	return c
}

func allowedOrDenied(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "DENIED"
}

func printTrace(w io.Writer, a *traceAnswer) {
	if s := a.Service; s != nil {
		at := or(strings.Join(s.Addresses, " "), "no address of its own: clients ask DNS for its pods")
		table(w, "", [][]string{{"Service", s.Name}, {"Address", at}, {"Ports", strings.Join(s.Ports, ", ")}})
		fmt.Fprintln(w)
	}
	// Connections of both families that are judged alike are one paragraph.
	type paragraph struct{ head, egress, ingress string }
	var order []paragraph
	routes := map[paragraph][][]string{}
	for _, c := range a.Connections {
		what := c.Protocol
		if c.Port > 0 {
			what += fmt.Sprint(" ", c.Port)
		}
		if c.ServicePort != "" {
			what += ", for the Service's " + c.ServicePort
		}
		p := paragraph{fmt.Sprintf("%s: %s to %s, %s", allowedOrDenied(c.Allowed), c.From, c.To, what), c.Egress.text(), c.Ingress.text()}
		if routes[p] == nil {
			order = append(order, p)
		}
		routes[p] = append(routes[p], []string{"way", c.From.Address + " to " + c.To.Address, c.Route.String()})
	}
	for i, p := range order {
		if i > 0 {
			fmt.Fprintln(w)
		}
		table(w, "", [][]string{{p.head}})
		table(w, "  ", [][]string{{"egress", p.egress}, {"ingress", p.ingress}})
		table(w, "  ", routes[p])
	}
	if len(a.Notes) > 0 {
		fmt.Fprintln(w)
		for _, n := range a.Notes {
			table(w, "", [][]string{{"Note: " + n}})
		}
	}
}
