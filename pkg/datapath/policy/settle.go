package policy

import (
	"slices"
)

// maxGuards is for how many different ports and ranges of them a bundle has sets of
// blocks of their own, which the kernel makes several times as fast as one of blocks and
// ports together. A rule compares the port for each; with more of them, there is one set.
const maxGuards = 8

// manyGuards says that blocks and ports are in one set.
func (b *bundle) manyGuards() bool {
	n := len(b.guards)
	if _, all := b.guards[guard{}]; all {
		n--
	}
	return n > maxGuards
}

// boxed says that a lookup of blocks is in the set that has them all.
func (b *bundle) boxed(l lookup) bool { return l.guard.proto != 0 && b.manyGuards() }

// chargeNets makes the cost of blocks what it is where they are in one set with their
// ports: every block is there once for each part of its range that others divide it into.
func (b *bundle) chargeNets(x *Index) {
	many := b.manyGuards()
	cuts := map[uint8][]int{}
	if many {
		for g := range b.guards {
			cuts[g.proto] = append(cuts[g.proto], int(g.lo), int(g.hi)+1)
		}
		for proto := range cuts {
			slices.Sort(cuts[proto])
			cuts[proto] = slices.Compact(cuts[proto])
		}
	}
	for _, c := range b.contributed {
		cost := 0
		for _, t := range c.nets {
			parts := 1
			if many && !t.port.isAll() {
				from, _ := slices.BinarySearch(cuts[t.port.proto], int(t.port.lo))
				to, _ := slices.BinarySearch(cuts[t.port.proto], int(t.port.hi)+1)
				parts = to - from
			}
			cost += parts * len(t.spans)
		}
		more := cost - c.netCost
		c.netCost = cost
		c.charge(x, more)
	}
}

// settle makes what is not kept up to date all the time: which policies are withheld,
// sets of blocks, and sets that became too large. The pods that are then judged by other
// rules get other profiles.
func (x *Index) settle() {
	if len(x.unsettled)+len(x.overdrawn) == 0 {
		return
	}
	for b := range x.unsettled {
		if b.staleNets {
			b.chargeNets(x)
		}
	}
	before := map[*bundle][]step{}
	for a := range x.overdrawn {
		for c := range a.contributions {
			before[c.bundle] = nil
		}
	}
	for b := range x.unsettled {
		before[b] = nil
	}
	for b := range before {
		before[b] = b.steps()
	}
	x.judgeAccounts()
	for b := range x.unsettled {
		b.settle(x)
	}
	again := map[*pod]struct{}{}
	for b, steps := range before {
		if slices.Equal(steps, b.steps()) {
			continue
		}
		for _, part := range b.parts {
			for p := range part.group.local {
				if slices.Contains(p.bundles, b) {
					again[p] = struct{}{}
				}
			}
		}
	}
	for p := range again {
		x.reprofile(p)
	}
}

func (b *bundle) settle(x *Index) {
	if b.staleNets {
		b.staleNets = false
		b.makeNets(x)
	}
	if !b.stale {
		return
	}
	b.stale = false
	want := map[lookup]map[string]int32{}
	for l, s := range b.sets {
		if !l.interval() {
			want[l] = make(map[string]int32, len(s.members))
		}
	}
	for _, c := range b.contributed {
		if c.withheld {
			continue
		}
		for _, e := range c.static {
			want[e.lookup][e.key]++
		}
		for _, u := range c.uses {
			u.eachPod(func(p *pod) { u.each(p, func(l lookup, key string) { want[l][key]++ }) })
		}
	}
	for l, members := range want {
		b.sets[l].replace(x, members)
	}
}

// makeNets makes the sets of blocks. They never change: their names say what is in them.
// While intervals of a set come and go, kernels without "nft_set_rbtree: translate rbtree
// to array for binary search" (7.0, 6.18.44) may not find others that overlap them, and
// those with it find the old ones for a moment.
func (b *bundle) makeNets(x *Index) {
	var terms []netTerm
	for _, c := range b.contributed {
		if !c.withheld {
			terms = append(terms, c.nets...)
		}
	}
	for l := range b.sets {
		if l.kind == kindNet && (b.netReasons[l] == 0 || b.boxed(l)) {
			b.drop(x, l)
		}
	}
	for l := range b.netReasons {
		if b.boxed(l) {
			continue
		}
		var spans []span
		for _, t := range terms {
			if t.port.guard() == l.guard {
				spans = appendFamily(spans, t.spans, l.family)
			}
		}
		spans = union(spans)
		boxes := make([]box, len(spans))
		for i, s := range spans {
			boxes[i] = box{addrKey(s.from), addrKey(s.to)}
		}
		b.setBoxes(x, l, boxes)
	}
	for _, family := range []uint8{4, 6} {
		var boxes []box
		if b.manyGuards() {
			boxes = netBoxes(terms, family)
		}
		b.setBoxes(x, lookup{kind: kindNetPort, family: family}, boxes)
	}
}

func (b *bundle) setBoxes(x *Index, l lookup, boxes []box) {
	name := ""
	if len(boxes) > 0 {
		parts := make([]string, 0, 2*len(boxes))
		for _, bx := range boxes {
			parts = append(parts, bx.from, bx.to)
		}
		name = b.prefix + "-" + l.String() + "-" + digest(parts...)
	}
	if old := b.sets[l]; old != nil && old.Name == name {
		return
	}
	b.drop(x, l)
	if name != "" {
		b.sets[l] = x.makeSet(name, l, b.effect, boxes)
	}
}
