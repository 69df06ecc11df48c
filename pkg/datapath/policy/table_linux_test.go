package policy_test

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

// A stage is two pods of this node, a client in slot 0 and a server in slot 1, and a
// table.
type stage struct {
	x              *policy.Index
	client, server policy.Pod
	lab            *lab
	table          *policy.Table
	sport          uint16
}

const serverPort = 80

func newStage(t testing.TB) *stage {
	st := &stage{x: policy.NewIndex(), lab: newLab(t, 3, policytest.PodAddrs)}
	st.table = openTable(t, st.lab.node)
	st.x.SetNamespace(policy.Namespace{Name: "shop"})
	pod := func(slot int, app string) policy.Pod {
		p := policy.Pod{Namespace: "shop", Name: app, UID: app, Labels: map[string]string{"app": app}, Addrs: policytest.PodAddrs(slot), Links: []string{slotLink(slot)}}
		st.x.SetPod(p)
		return p
	}
	st.client, st.server = pod(0, "client"), pod(1, "server")
	return st
}

func (st *stage) apply(t testing.TB) {
	t.Helper()
	if err := st.table.Apply(st.x.Ruleset(), st.x.Flush()); err != nil {
		t.Fatal(err)
	}
}

// ingressPolicy lets the pods with some label be reached from those with another.
func ingressPolicy(name, of, from string) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	np.Spec.PodSelector.MatchLabels = map[string]string{"app": of}
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	if from != "" {
		np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": from}}}}}}
	}
	return np
}

// reaches says whether a new connection from the client passes to the server.
func (st *stage) reaches() bool {
	st.sport++
	tag := st.lab.send(firstSlot, st.hello(20000+st.sport))
	_, came := st.lab.settled()[tag]
	return came
}

func (st *stage) hello(sport uint16) segment {
	return segment{src: st.client.Addrs[1], dst: st.server.Addrs[1], proto: unix.IPPROTO_UDP, sport: sport, dport: serverPort}
}

func (st *stage) list() (string, error) {
	return st.lab.node.Try("nft", "list", "table", "inet", "flock-policy")
}

func (st *stage) wantReaches(t *testing.T, want bool) {
	t.Helper()
	if got := st.reaches(); got != want {
		text, _ := st.list()
		t.Errorf("the client reaches the server: %v, want %v; table:\n%s", got, want, text)
	}
}

func (st *stage) wantRepairs(t *testing.T, want ...string) {
	t.Helper()
	repairs, err := st.table.Sync(st.x.Ruleset(), func() {})
	if err != nil {
		t.Fatal(err)
	}
	ok := len(repairs) == len(want)
	for i := range min(len(repairs), len(want)) {
		ok = ok && strings.Contains(repairs[i].String(), want[i])
	}
	if !ok {
		t.Errorf("repairs %q, want %q", repairs, want)
	}
}

// A node without a selected pod has no table; nor has one that has no such pod any
// more, and one that flock leaves.
func TestTableComesAndGoes(t *testing.T) {
	st := newStage(t)
	st.apply(t)
	wantTable := func(want bool) {
		t.Helper()
		if text, err := st.list(); (err == nil) != want {
			t.Errorf("the table is there: %v, want %v\n%s", err == nil, want, text)
		}
	}
	wantTable(false)
	st.x.SetNetworkPolicy(ingressPolicy("deny", "server", ""))
	st.apply(t)
	wantTable(true)
	st.wantReaches(t, false)
	if out := st.lab.node.Exec("nft", "list", "ruleset"); !strings.Contains(out, "hook forward") {
		t.Errorf("the ruleset is %s", out)
	}
	st.x.DeletePolicy(policy.PolicyRef{Namespace: "shop", Name: "deny"})
	st.apply(t)
	wantTable(false)
	st.wantReaches(t, true)
	st.wantRepairs(t)

	st.x.SetNetworkPolicy(ingressPolicy("deny", "server", ""))
	st.apply(t)
	if err := st.table.Remove(); err != nil {
		t.Fatal(err)
	}
	wantTable(false)
	if err := st.table.Remove(); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	st.wantRepairs(t, "table inet flock-policy: missing")
	st.wantReaches(t, false)
}

// What another hand changes is found, repaired and named.
func TestSyncRepairs(t *testing.T) {
	st := newStage(t)
	st.x.SetNetworkPolicy(ingressPolicy("none", "server", "nobody"))
	block := ingressPolicy("block", "server", "")
	block.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "10.9.0.0/24"}}}}}
	st.x.SetNetworkPolicy(block)
	st.x.SetNetworkPolicy(ingressPolicy("friend", "server", "friend"))
	friend := policy.Pod{Namespace: "shop", Name: "friend", UID: "friend", Labels: map[string]string{"app": "friend"}, Addrs: policytest.PodAddrs(9)}
	st.x.SetPod(friend)
	st.apply(t)
	st.wantRepairs(t)
	var profile, pods, nets string
	for name := range st.x.Ruleset().Profiles {
		profile = name
	}
	for name := range st.x.Ruleset().Sets {
		switch {
		case strings.HasSuffix(name, "addr6"):
			pods = name
		case strings.Contains(name, "net4"):
			nets = name
		}
	}
	client6, link := st.client.Addrs[1].String(), st.server.Links[0]
	for _, c := range []struct {
		hand string
		want []string
	}{
		{"add element inet flock-policy " + pods + " { " + client6 + " }", []string{"set inet flock-policy " + pods + ": 0 elements missing, 1 stray"}},
		{"flush set inet flock-policy " + pods, []string{"set inet flock-policy " + pods + ": 1 elements missing, 0 stray"}},
		{"delete element inet flock-policy to-pod { " + link + " }", []string{"set inet flock-policy to-pod: 1 elements missing"}},
		{"delete element inet flock-policy to-pod { " + link + " }; add element inet flock-policy to-pod { " + link + " : accept }", []string{"set inet flock-policy to-pod: 1 elements missing, 1 stray"}},
		{"add element inet flock-policy " + nets + " { 10.1.0.0/16 }", []string{nets + ": 0 elements missing, 1 stray"}},
		{"insert rule inet flock-policy " + profile + "-orig return", []string{"chain inet flock-policy " + profile + "-orig: other rules"}},
		{"flush chain inet flock-policy forward", []string{"chain inet flock-policy forward: other rules"}},
		{"insert rule inet flock-policy forward accept", []string{"chain inet flock-policy forward: other rules"}},
		{"flush chain inet flock-policy judge", []string{"chain inet flock-policy judge: other rules"}},
		{"flush chain inet flock-policy forward; delete chain inet flock-policy forward", []string{"chain inet flock-policy forward: missing"}},
		{"add chain inet flock-policy other; add rule inet flock-policy other accept; add rule inet flock-policy judge jump other", []string{"chain inet flock-policy judge: other rules", "chain inet flock-policy other: stray"}},
		{"add set inet flock-policy other { type mark; }", []string{"set inet flock-policy other: stray"}},
		{"add chain inet flock-policy forward { type filter hook forward priority filter - 10; policy drop; }", []string{"hook 2 priority -10 policy 0, want"}},
		{"delete table inet flock-policy", []string{"table inet flock-policy: missing"}},
		{"flush ruleset", []string{"table inet flock-policy: missing"}},
		{"delete table inet flock-policy; add table inet flock-policy; add set inet flock-policy to-pod { type mark; }", []string{"set inet flock-policy", ""}},
	} {
		st.wantReaches(t, false)
		st.lab.node.Exec("nft", c.hand)
		repairs, err := st.table.Sync(st.x.Ruleset(), func() {})
		if err != nil {
			t.Fatalf("%s: %v", c.hand, err)
		}
		if len(repairs) < len(c.want) || len(c.want) > 0 && !strings.Contains(repairs[0].String(), c.want[0]) || len(c.want) == 1 && len(repairs) != 1 {
			t.Errorf("%s: repairs %q, want %q", c.hand, repairs, c.want)
		}
		st.wantReaches(t, false)
		st.wantRepairs(t)
	}
	// Changes of other tables are nobody's business.
	st.lab.node.Exec("nft", "add table inet other")
	st.wantRepairs(t)
}

// A change of what another hand has taken away is one of everything.
func TestApplyAfterForeignDamage(t *testing.T) {
	st := newStage(t)
	st.x.SetNetworkPolicy(ingressPolicy("deny", "server", ""))
	st.apply(t)
	st.lab.node.Exec("nft", "flush ruleset")
	st.x.SetNetworkPolicy(ingressPolicy("more", "client", ""))
	st.apply(t)
	st.wantReaches(t, false)
	st.wantRepairs(t)
}

// Whichever transaction of a change fails, and whether the kernel did it or not: what
// was in force stays in force, and the next try does all of it.
func TestEachTransactionFails(t *testing.T) {
	for _, done := range []bool{false, true} {
		failures := 0
		for n := 0; ; n++ {
			st := newStage(t)
			st.x.SetNetworkPolicy(ingressPolicy("deny", "server", ""))
			st.x.SetNetworkPolicy(blockPolicy("0.0.0.0/0"))
			st.apply(t)
			// What comes from outside is revoked, by a change of the set of blocks.
			outside := segment{src: waypointA, dst: st.server.Addrs[0], proto: unix.IPPROTO_UDP, sport: 9, dport: 9}
			wantOutside := func(want bool) {
				t.Helper()
				tag := st.lab.send(uplink, outside)
				if _, came := st.lab.settled()[tag]; came != want {
					t.Errorf("transaction %d: a packet from outside came: %v, want %v", n, came, want)
				}
			}
			wantOutside(true)
			lost := errors.New("the answer is lost")
			failed := false
			st.table.WrapCommit(func(count int, commit func() error) error {
				if count != n {
					return commit()
				}
				failed = true
				if done {
					if err := commit(); err != nil {
						return err
					}
				}
				return lost
			})
			// New sets, chains and a link; others go.
			st.x.SetPod(policy.Pod{Namespace: "shop", Name: "friend", UID: "friend", Labels: map[string]string{"app": "friend"}, Addrs: policytest.PodAddrs(9)})
			st.x.SetNetworkPolicy(ingressPolicy("deny", "server", "friend"))
			st.x.SetNetworkPolicy(ingressPolicy("more", "client", "server"))
			st.x.SetNetworkPolicy(blockPolicy("10.9.0.0/16"))
			err := st.table.Apply(st.x.Ruleset(), st.x.Flush())
			if !failed {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			failures++
			if !errors.Is(err, lost) {
				t.Errorf("transaction %d: %v, want its error", n, err)
			}
			st.wantReaches(t, false)
			if n%2 == 0 { // another agent comes meanwhile
				st.table = openTable(t, st.lab.node)
			}
			if err := st.table.Apply(st.x.Ruleset(), st.x.Flush()); err != nil {
				t.Fatal(err)
			}
			st.wantReaches(t, false)
			wantOutside(false)
			st.wantRepairs(t)
			st.table = openTable(t, st.lab.node)
			st.wantRepairs(t)
		}
		if failures < 2 {
			t.Errorf("%d transactions failed, want each of two", failures)
		}
	}
}

// blockPolicy lets a block reach the server.
func blockPolicy(cidr string) *networkingv1.NetworkPolicy {
	np := ingressPolicy("block", "server", "")
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: cidr}}}}}
	return np
}

// A TCP connection that conntrack has forgotten is judged as what it is, if its server
// is the first to send: by the policies about its client and its server.
func TestServerSpeaksFirst(t *testing.T) {
	st := newStage(t)
	at := map[bool]int{true: firstSlot, false: firstSlot + 1}
	const clientPort, postgres = 40000, 5432
	// The client opens it from its ephemeral port, or the server from the low one.
	packet := func(fromClient bool, flags byte) segment {
		s := segment{src: st.client.Addrs[1], dst: st.server.Addrs[1], proto: unix.IPPROTO_TCP, sport: clientPort, dport: postgres, flags: flags}
		if !fromClient {
			s.src, s.dst, s.sport, s.dport = s.dst, s.src, s.dport, s.sport
		}
		return s
	}
	send := func(fromClient bool, flags byte, want bool) {
		t.Helper()
		tag := st.lab.send(at[fromClient], packet(fromClient, flags))
		if _, came := st.lab.settled()[tag]; came != want {
			text, _ := st.list()
			t.Errorf("a packet of the client %v with flags %#x comes: %v, want %v\n%s", fromClient, flags, came, want, text)
		}
	}
	open := func(byClient bool) {
		t.Helper()
		st.lab.node.Exec("conntrack", "-F")
		send(byClient, syn, true)
		send(!byClient, syn|ackFlag, true)
		send(byClient, ackFlag, true)
	}
	const data = push | ackFlag
	set := func(from string) {
		t.Helper()
		st.x.SetNetworkPolicy(ingressPolicy("server", "server", from))
		st.apply(t)
	}
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"revoked, then forgotten", func() {
			set("nobody")
			st.lab.node.Exec("conntrack", "-F")
			send(false, data, false)
			send(true, data, false)
			set("client")
			send(false, data, true)
			send(true, data, true)
		}},
		{"forgotten", func() {
			st.lab.node.Exec("conntrack", "-F")
			send(false, data, true)
			send(true, data, true)
			send(false, data, true)
		}},
		{"forgotten, then revoked", func() {
			st.lab.node.Exec("conntrack", "-F")
			send(false, data, true)
			set("nobody")
			send(false, data, false)
			send(true, data, false)
		}},
		{"forgotten, the client is first", func() {
			st.lab.node.Exec("conntrack", "-F")
			send(true, data, true)
			send(false, data, true)
			set("nobody")
			send(false, data, false)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			set("client")
			open(true)
			send(false, data, true)
			c.do()
		})
	}
	t.Run("a client with a low port", func(t *testing.T) {
		set("nobody")
		open(false)
		send(true, data, true)
		set("client")
		set("nobody") // another generation
		send(false, data, true)
		send(true, data, true)
	})
}

// A new agent takes over the table of the last one as it is: nothing is judged again,
// and nothing passes or is lost meanwhile.
func TestRestart(t *testing.T) {
	st := newStage(t)
	st.x.SetNetworkPolicy(ingressPolicy("client", "server", "client"))
	st.apply(t)
	before, err := st.list()
	if err != nil {
		t.Fatal(err)
	}
	st.table = openTable(t, st.lab.node)
	// The new agent knows the same.
	x := policy.NewIndex()
	x.SetNetworkPolicy(ingressPolicy("client", "server", "client"))
	x.SetPod(st.server)
	x.SetPod(st.client)
	x.SetNamespace(policy.Namespace{Name: "shop"})
	st.x = x
	st.apply(t)
	after, err := st.list()
	if err != nil || after != before {
		t.Errorf("the table changed from\n%s\nto\n%s, %v", before, after, err)
	}
	st.wantRepairs(t)

	// It finds what was done while it was away.
	st.table = openTable(t, st.lab.node)
	st.x.DeletePolicy(policy.PolicyRef{Namespace: "shop", Name: "client"})
	st.x.SetNetworkPolicy(ingressPolicy("deny", "server", ""))
	hello := st.hello(77)
	if tag := st.lab.send(firstSlot, hello); st.lab.settled()[tag] != firstSlot+1 {
		t.Error("the connection is not allowed before")
	}
	st.apply(t)
	tag := st.lab.send(firstSlot, hello)
	if at, came := st.lab.settled()[tag]; came {
		t.Errorf("a packet of the connection comes to port %d after it was revoked", at)
	}
}

// A pod's policies are in force before its link exists.
func TestDenyBeforeLink(t *testing.T) {
	st := newStage(t)
	st.x.SetNetworkPolicy(ingressPolicy("deny", "late", ""))
	st.x.SetPod(policy.Pod{Namespace: "shop", Name: "late", UID: "late", Labels: map[string]string{"app": "late"}, Links: []string{"flock0000abcd"}})
	st.apply(t)
	if text, err := st.list(); err != nil || !strings.Contains(text, `"flock0000abcd" : jump in-`) {
		t.Errorf("%v, %s", err, text)
	}
}

// While policies change as fast as they can, and agents start again, no packet of a connection passes that is
// denied throughout, none is lost that is allowed throughout, and none passes that is
// sent after its revocation was acknowledged.
func TestHammer(t *testing.T) {
	st := newStage(t)
	other := st.client
	other.Name, other.UID, other.Addrs, other.Links = "other", "other", policytest.PodAddrs(2), []string{slotLink(2)}
	other.Labels = map[string]string{"app": "other"}
	st.x.SetPod(other)
	// The server may always be reached by the client; by the other pod never; from
	// outside now and then.
	always := ingressPolicy("always", "server", "client")
	outside := ingressPolicy("now-and-then", "server", "client")
	outside.Spec.Ingress[0].From = append(outside.Spec.Ingress[0].From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24"}})
	narrow := outside.DeepCopy()
	narrow.Spec.Ingress[0].From[1].IPBlock.CIDR = "192.0.2.128/25"
	st.x.SetNetworkPolicy(always)
	st.apply(t)

	var spare []*policy.Table
	for range 15 {
		spare = append(spare, openTable(t, st.lab.node))
	}
	var stop atomic.Bool
	var epoch atomic.Int64 // even while packets from outside are denied
	failed := make(chan error, 1)
	changes := 0
	go func() {
		defer stop.Store(true)
		// Each way to change what the server's link leads to.
		decoy := policy.Pod{Namespace: "shop", Name: "decoy", UID: "decoy", Labels: map[string]string{"app": "client"}, Addrs: policytest.PodAddrs(50)}
		ref := policy.PolicyRef{Namespace: "shop", Name: "now-and-then"}
		selective := outside.DeepCopy()
		selective.Spec.PodSelector.MatchLabels["tier"] = "front"
		front := st.server
		front.Labels = map[string]string{"app": "server", "tier": "front"}
		steps := []struct {
			allows, denies bool // packets from outside: from before it on, from after it on
			change         func()
		}{
			{allows: true, change: func() { st.x.SetNetworkPolicy(outside) }},
			{change: func() { st.x.SetPod(decoy) }},
			{denies: true, change: func() { st.x.SetNetworkPolicy(narrow) }},
			{change: func() { st.x.DeletePod("shop", "decoy", "decoy") }},
			{change: func() { st.x.DeletePolicy(ref) }},
			{change: func() { st.x.SetNetworkPolicy(selective) }},
			{allows: true, change: func() { st.x.SetPod(front) }},
			{denies: true, change: func() { st.x.SetPod(st.server) }},
			{change: func() { st.x.DeletePolicy(ref) }},
		}
		for round := range 300 {
			if round%20 == 0 { // another agent takes over
				st.table, spare = spare[0], spare[1:]
			}
			for _, step := range steps {
				if step.allows {
					epoch.Add(1)
				}
				step.change()
				if err := st.table.Apply(st.x.Ruleset(), st.x.Flush()); err != nil {
					failed <- err
					return
				}
				if step.denies {
					epoch.Add(1)
				}
				changes++
			}
		}
	}()
	fromOutside := segment{src: waypointA, dst: st.server.Addrs[0], proto: unix.IPPROTO_UDP, sport: 9, dport: 9}
	denied := segment{src: other.Addrs[0], dst: st.server.Addrs[0], proto: unix.IPPROTO_UDP, sport: 9, dport: 9}
	allowed := segment{src: st.client.Addrs[0], dst: st.server.Addrs[0], proto: unix.IPPROTO_UDP, sport: 9, dport: 9}
	reply := segment{src: allowed.dst, dst: allowed.src, proto: unix.IPPROTO_UDP, sport: 9, dport: 9}
	sent, lost, passed, revoked := 0, 0, 0, 0
	for !stop.Load() {
		var always, never []uint64
		for range 5 {
			always = append(always, st.lab.send(firstSlot, allowed), st.lab.send(firstSlot+1, reply))
			never = append(never, st.lab.send(firstSlot+2, denied))
		}
		began := epoch.Load()
		sometimes := st.lab.send(uplink, fromOutside)
		came := st.lab.settled()
		for _, tag := range always {
			sent++
			if _, ok := came[tag]; !ok {
				lost++
			}
		}
		for _, tag := range never {
			if _, ok := came[tag]; ok {
				passed++
			}
		}
		// It was judged while it was denied: there was no change that allows it.
		if began%2 == 0 && began == epoch.Load() {
			revoked++
			if _, ok := came[sometimes]; ok {
				passed++
			}
		}
	}
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	t.Logf("%d changes, %d packets of allowed connections, %d of revoked ones", changes, sent, revoked)
	if lost > 0 || passed > 0 {
		t.Errorf("%d of %d allowed packets lost, %d denied ones passed, during %d changes", lost, sent, passed, changes)
	}
	st.wantRepairs(t)
}

// While blocks change that contain an address throughout, no new connection from it is
// lost, whatever the kernel does with intervals that come and go.
func TestBlocksThatOverlap(t *testing.T) {
	st := newStage(t)
	st.x.SetNetworkPolicy(blockPolicy("192.0.2.0/24"))
	st.apply(t)
	var stop atomic.Bool
	failed := make(chan error, 1)
	changes := 0
	go func() {
		defer stop.Store(true)
		for range 150 {
			for _, cidr := range []string{"192.0.2.64/26", "192.0.0.0/16", "192.0.2.77/32", "192.0.2.0/24"} {
				np := blockPolicy(cidr)
				for i := range 50 { // others, so that the address's is somewhere in the tree
					block := netip.AddrFrom4([4]byte{192, byte(50 + 3*i), 0, 0})
					np.Spec.Ingress[0].From = append(np.Spec.Ingress[0].From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: netip.PrefixFrom(block, 16).String()}})
				}
				st.x.SetNetworkPolicy(np)
				if err := st.table.Apply(st.x.Ruleset(), st.x.Flush()); err != nil {
					failed <- err
					return
				}
				changes++
			}
		}
	}()
	sent, lost := 0, 0
	for !stop.Load() {
		var tags []uint64
		for range 20 {
			st.sport++
			tags = append(tags, st.lab.send(uplink, segment{src: waypointA, dst: st.server.Addrs[0], proto: unix.IPPROTO_UDP, sport: st.sport, dport: 9}))
		}
		came := st.lab.settled()
		for _, tag := range tags {
			sent++
			if _, ok := came[tag]; !ok {
				lost++
			}
		}
	}
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	if t.Logf("%d new connections, %d changes", sent, changes); lost > 0 {
		t.Errorf("%d of %d lost", lost, sent)
	}
}

// Rules about nodes and networks also judge what a pod sends to its own node.
func TestToNode(t *testing.T) {
	st := newStage(t)
	nodeAddr := [2]netip.Addr{netip.MustParseAddr("10.9.1.1"), netip.MustParseAddr("fd00:9:1::1")}
	st.lab.node.Address("lo", "10.9.1.1/32")
	st.lab.node.Address("lo", "fd00:9:1::1/128")
	st.x.SetNode(policy.Node{Name: "here", Labels: map[string]string{"zone": "a"}, Addrs: nodeAddr[:]})
	// An answer to an echo request says that the request was let in.
	wantAnswer := func(want bool) {
		t.Helper()
		for i, proto := range []uint8{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
			st.sport++
			tag := st.lab.send(firstSlot, segment{src: st.client.Addrs[i], dst: nodeAddr[i], proto: proto, sport: st.sport})
			if _, came := st.lab.settled()[tag]; came != want {
				text, _ := st.list()
				t.Errorf("the node answers to %s: %v, want %v\n%s", nodeAddr[i], came, want, text)
			}
		}
	}
	wantInput := func(want bool) {
		t.Helper()
		if text, err := st.list(); err != nil || strings.Contains(text, "hook input") != want {
			t.Errorf("there is a chain for input: %v; %v", !want, err)
		}
	}
	// Policies of namespaces do not concern the node.
	deny := ingressPolicy("deny", "client", "")
	deny.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress}
	st.x.SetNetworkPolicy(deny)
	st.apply(t)
	wantAnswer(true)
	wantInput(false)

	toNodes := egressRule{Action: "Deny", To: []policyv1beta1.ClusterNetworkPolicyEgressPeer{{Nodes: &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "a"}}}}}
	st.x.SetClusterNetworkPolicy(clusterPolicy(toNodes))
	st.apply(t)
	wantAnswer(false)
	wantInput(true)
	st.wantRepairs(t)

	// Nodes of another zone are none of its business.
	st.x.SetNode(policy.Node{Name: "here", Labels: map[string]string{"zone": "b"}, Addrs: nodeAddr[:]})
	st.apply(t)
	wantAnswer(true)
	st.x.SetClusterNetworkPolicy(clusterPolicy(toNetworks("Accept", "10.9.1.0/24", "fd00:9:1::/64"), toNetworks("Deny", "0.0.0.0/0", "::/0")))
	st.apply(t)
	wantAnswer(true)
	st.x.SetClusterNetworkPolicy(clusterPolicy(toNetworks("Deny", "0.0.0.0/0", "::/0")))
	st.apply(t)
	wantAnswer(false)

	st.lab.node.Exec("nft", "flush chain inet flock-policy input; delete chain inet flock-policy input")
	st.wantRepairs(t, "chain inet flock-policy input: missing")
	wantAnswer(false)
	st.x.DeletePolicy(policy.PolicyRef{Name: "rules"})
	st.apply(t)
	wantAnswer(true)
	wantInput(false)
	st.wantRepairs(t)
}

// Behind a Service, policies see the real ends: the pod that serves and the pod that
// asks. A pod that reaches itself through its Service is let through.
func TestServices(t *testing.T) {
	st := newStage(t)
	// As kube-proxy does it: translation before the forward hook, and masquerading of
	// what a pod sends to itself.
	st.lab.node.Exec("nft", `
table ip6 kube-proxy {
	chain services {
		type nat hook prerouting priority dstnat;
		ip6 daddr fd00:5::1 udp dport 80 dnat to [`+st.server.Addrs[1].String()+`]:8080
	}
	chain outgoing {
		type nat hook postrouting priority srcnat;
		ip6 saddr `+st.server.Addrs[1].String()+` ip6 daddr `+st.server.Addrs[1].String()+` snat to fd00:5::2
	}
}`)
	service := netip.MustParseAddr("fd00:5::1")
	reaches := func(from int, src netip.Addr) bool {
		st.sport++
		tag := st.lab.send(firstSlot+from, segment{src: src, dst: service, proto: unix.IPPROTO_UDP, sport: 30000 + st.sport, dport: 80})
		at, came := st.lab.settled()[tag]
		return came && at == firstSlot+1
	}
	want := func(client, itself bool) {
		t.Helper()
		if got := reaches(0, st.client.Addrs[1]); got != client {
			t.Errorf("the client reaches the server through its Service: %v, want %v", got, client)
		}
		if got := reaches(1, st.server.Addrs[1]); got != itself {
			t.Errorf("the server reaches itself through its Service: %v, want %v", got, itself)
		}
	}
	want(true, true)
	st.x.SetNetworkPolicy(ingressPolicy("deny", "server", ""))
	st.apply(t)
	want(false, true)
	// The port that counts is the pod's, not the Service's.
	allow := ingressPolicy("allow", "server", "client")
	udp, port := corev1.ProtocolUDP, intstr.FromInt32(8080)
	allow.Spec.Ingress[0].Ports = []networkingv1.NetworkPolicyPort{{Protocol: &udp, Port: &port}}
	st.x.SetNetworkPolicy(allow)
	st.apply(t)
	want(true, true)
	out := ingressPolicy("out", "client", "")
	out.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	st.x.SetNetworkPolicy(out)
	st.apply(t)
	want(false, true)
	out = out.DeepCopy()
	out.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}}}}}}
	st.x.SetNetworkPolicy(out)
	st.apply(t)
	want(true, true)
	st.lab.node.Exec("nft", "list", "ruleset")
}
