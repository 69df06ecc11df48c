package flockctl

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

var policyCommand = command{
	name: "policy", args: "[NAMESPACE/]NAME",
	short: "Show what policies decide about a pod: rules in order, peers, ports",
	long: `For each direction: whether the pod is isolated and by which NetworkPolicies; then
every rule about it in the order of decision, with the tier of a ClusterNetworkPolicy,
the peers, whom they are at present, and the ports as they are now, named ones
resolved. The first rule that matches decides, but rules of NetworkPolicies are asked
together: any of them allows. With --agents, also what the node has counted: that
takes the right to pods/exec in flock's namespace.`,
	examples: `flockctl policy shop/web-0
flockctl policy web-0 -n shop --agents
flockctl policy shop/web-0 -o json | jq '.sides[] | select(.direction == "ingress") | .isolating'`,
	flags: []string{"output", "watch", "agents"}, min: 1, max: 1,
	run: runPolicy,
}

// policyAnswer is what there is to say of a pod's policies.
type policyAnswer struct {
	Pod       string        `json:"pod"`
	Node      string        `json:"node,omitempty"`
	Addresses []netip.Addr  `json:"addresses,omitempty"`
	Sides     []policy.Side `json:"sides,omitempty"`
	// InForce is what the node's agent says, if it was asked.
	InForce *policy.PodReport `json:"inForce,omitempty"`
	// NotEnforced are parts of the policies that cannot be.
	NotEnforced []policy.Finding `json:"notEnforced,omitempty"`
	Notes       []string         `json:"notes,omitempty"`
}

const (
	// shownAddresses is how many of a peer's are shown, and countedPods how many pods
	// are read for one peer.
	shownAddresses = 4
	countedPods    = 1000
)

func runPolicy(ctx context.Context, s *session, args []string) error {
	c, pod, err := s.findPod(ctx, args[0])
	if err != nil {
		return err
	}
	r := &reading{cluster: c, facts: policyFacts{policies: map[string]bool{}}}
	if err := r.readCluster(ctx); err != nil {
		return err
	}
	t := target{pods: []*corev1.Pod{pod}}
	if err := r.readPolicies(ctx, t); err != nil {
		return err
	}
	x := r.facts.index(t)
	notes, err := r.readPeers(ctx, x, pod)
	if err != nil {
		return err
	}
	answer := r.facts.answerPolicy(x, pod)
	answer.Notes = append(notes, answer.Notes...)
	if s.agents && len(answer.Sides) > 0 {
		if answer.InForce, err = r.aboutPod(ctx, s, answer.Node, answer.Pod, nil); err != nil {
			answer.Notes = append(answer.Notes, err.Error())
		}
	}
	if s.output != "" {
		return s.structured(answer)
	}
	printPolicy(s.out, answer)
	return nil
}

// readPeers reads the pods that rules about the pod select.
func (r *reading) readPeers(ctx context.Context, x *policy.Index, pod *corev1.Pod) (notes []string, err error) {
	for _, s := range x.PeerSelectors(pod.Namespace, pod.Name, string(pod.UID)) {
		list := &corev1.PodList{}
		request := r.core.Get().NamespaceIfScoped(s.Namespace, s.Namespace != "").Resource("pods").
			Param("labelSelector", s.Pods.String()).Param("limit", fmt.Sprint(countedPods))
		if err := r.explain(request.Do(ctx).Into(list), "list", "pods"); err != nil {
			return nil, err
		}
		if list.Continue != "" {
			notes = append(notes, fmt.Sprintf("more than %d pods are %s: the counts of addresses are of the first ones", countedPods, or(s.Pods.String(), "selected")))
		}
		for i := range list.Items {
			if p := &list.Items[i]; p.UID != pod.UID {
				x.SetPod(policy.PodOf(p, r.facts.podAddresses(p)))
			}
		}
	}
	return notes, nil
}

func (f *policyFacts) answerPolicy(x *policy.Index, pod *corev1.Pod) *policyAnswer {
	a := &policyAnswer{Pod: pod.Namespace + "/" + pod.Name, Node: pod.Spec.NodeName, Addresses: f.podAddresses(pod)}
	switch {
	case pod.Spec.HostNetwork:
		a.Notes = append(a.Notes, "it is in the network of its node, so no policy selects it")
		return a
	case a.Node == "":
		a.Notes = append(a.Notes, "it is not on a node yet")
	}
	a.Sides = x.Sides(pod.Namespace, pod.Name, string(pod.UID), shownAddresses)
	about := map[policy.PolicyRef]bool{}
	for _, s := range a.Sides {
		for _, ref := range s.Isolating {
			about[ref] = true
		}
		for _, r := range s.Rules {
			about[r.Policy] = true
		}
	}
	for _, finding := range x.Findings() {
		if about[finding.Policy] {
			a.NotEnforced = append(a.NotEnforced, finding)
		}
	}
	a.Notes = append(a.Notes, f.agentNotes([]attempt{{From: end{Node: a.Node}, Egress: traceSide{Judged: true}}})...)
	return a
}

func printPolicy(w io.Writer, a *policyAnswer) {
	table(w, "", [][]string{{"Pod", a.Pod}, {"Node", or(a.Node, none)}, {"Addresses", or(join(a.Addresses, " "), none)}})
	for _, s := range a.Sides {
		name := strings.ToUpper(string(s.Direction[:1])) + string(s.Direction[1:])
		fmt.Fprintln(w)
		if len(s.Isolating) > 0 {
			table(w, "", [][]string{{name + ", isolated by " + policy.List(s.Isolating) + ": what no rule allows is denied"}})
		} else {
			table(w, "", [][]string{{name + ", not isolated: what no rule denies is allowed"}})
		}
		rows := [][]string{{"ACTION", "TIER", "POLICY", "RULE", "PEERS", "ADDRESSES NOW", "PORTS"}}
		for _, r := range s.Rules {
			policyName := r.Policy.Name
			if r.Policy.Namespace != "" {
				policyName = r.Policy.Namespace + "/" + r.Policy.Name
			}
			row := []string{r.Action, or(r.Tier, none), policyName, r.Rule, "", "", or(strings.Join(r.Ports, ", "), "none")}
			if r.Tier == "Baseline" && len(s.Isolating) > 0 {
				row[0] += " (not asked)"
			}
			if len(r.Peers) == 0 {
				row[4] = "nobody"
				rows = append(rows, row)
			}
			for i, p := range r.Peers {
				if i > 0 {
					row = []string{"", "", "", "", "", "", ""}
				}
				row[4], row[5] = p.Text, addressesNow(p)
				rows = append(rows, row)
			}
		}
		if len(rows) > 1 {
			table(w, "  ", rows)
		}
	}
	if r := a.InForce; r != nil {
		fmt.Fprintf(w, "\nCounted on node %s, in packets\n", a.Node)
		rows := [][]string{{"denied to the pod", fmt.Sprint(r.DeniedIn)}, {"denied from the pod", fmt.Sprint(r.DeniedOut)}}
		for _, d := range r.Decisions {
			rows = append(rows, []string{fmt.Sprintf("%s by %v, %s, for all its pods here", d.Verdict, d.Policy, d.Direction), fmt.Sprint(d.Packets)})
		}
		table(w, "  ", rows)
		if !r.InForce {
			table(w, "  ", [][]string{{"the node is behind: " + r.Why}})
		}
	}
	if len(a.NotEnforced) > 0 {
		fmt.Fprintln(w, "\nNot enforced")
		for _, f := range a.NotEnforced {
			table(w, "  ", [][]string{{f.Policy.String() + ": " + f.Message}})
		}
	}
	if len(a.Notes) > 0 {
		fmt.Fprintln(w)
		for _, n := range a.Notes {
			table(w, "", [][]string{{"Note: " + n}})
		}
	}
}

// addressesNow are whom a peer selects.
func addressesNow(p policy.RulePeers) string {
	if p.Total == 0 && len(p.Addresses) == 0 {
		if p.Selects {
			return "nobody"
		}
		return none
	}
	text := join(p.Addresses, " ")
	if more := p.Total - len(p.Addresses); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
