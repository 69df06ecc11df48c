// Package annotation reads what a pod asks for: its annotations under
// flock.fritzlab.net/, with the node's defaults for what they leave open.
//
// Annotations are written by tenants. What comes out of Parse is well-formed and
// free of contradictions, but still a request: whether the pod may have it is
// decided by package grant. Nothing else reads these strings. It is pure.
package annotation

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// Prefix begins each key that is flock's.
const Prefix = "flock.fritzlab.net/"

// The keys, and what their values are.
const (
	IPv6      = Prefix + "ipv6"      // "true" or "false"
	IPv4      = Prefix + "ipv4"      // "true" or "false"
	CIDR6     = Prefix + "cidr6"     // a prefix
	CIDR4     = Prefix + "cidr4"     // a prefix
	Addresses = Prefix + "addresses" // addresses, separated by commas
	Anycast   = Prefix + "anycast"   // addresses, separated by commas
	IPAlgo    = Prefix + "ip-algo"   // of namespace, app, image, separated by commas; or "random"
)

// Keys lists them all.
var Keys = []string{IPv6, IPv4, CIDR6, CIDR4, Addresses, Anycast, IPAlgo}

// MaxAddresses is how many addresses one annotation may list. It bounds what a
// tenant can make a node do.
const MaxAddresses = 1024

// random is the value of ip-algo for a random address where the node's default is not.
const random = "random"

// Request is what a pod asks for.
type Request struct {
	// IPv6 and IPv4 are the families in which the pod gets an address: at least one.
	IPv6, IPv4 bool
	// CIDR6 and CIDR4 restrict the allocation. Zero allows all of the node's CIDRs.
	CIDR6, CIDR4 netip.Prefix
	// Static are the addresses asked for by name, in order. The first of a
	// family is the pod's address of that family, in place of an allocated one.
	Static []netip.Addr
	// Anycast are the addresses to be announced while the pod is Ready.
	Anycast []netip.Addr
	// IPAlgo is what the allocated IPv6 address is made of; random if empty.
	IPAlgo []v1alpha1.IPAlgo
}

// Primary splits the static addresses of a family, netip.Addr.Is6 or Is4, into the
// pod's primary one (the zero Addr if that is to be allocated) and the secondary ones.
func (r Request) Primary(is func(netip.Addr) bool) (primary netip.Addr, secondary []netip.Addr) {
	for _, a := range r.Static {
		switch {
		case !is(a):
		case !primary.IsValid():
			primary = a
		default:
			secondary = append(secondary, a)
		}
	}
	return primary, secondary
}

// Error is what is wrong with one annotation.
type Error struct {
	Key, Value string
	// Want says what is wrong, and what to write instead.
	Want string
}

func (e *Error) Error() string {
	return fmt.Sprintf("annotation %s=%s: %s", e.Key, quote(e.Value), e.Want)
}

// Errors are all that is wrong with a pod's annotations, in the order of Keys.
type Errors []*Error

func (es Errors) Error() string {
	var out []string
	for _, e := range es {
		out = append(out, e.Error())
	}
	return strings.Join(out, "; ")
}

// Unwrap lets errors.As find the single errors.
func (es Errors) Unwrap() []error {
	var out []error
	for _, e := range es {
		out = append(out, e)
	}
	return out
}

// Warning is about something that was ignored. The author of the annotation should
// know of it.
type Warning string

// Parse reads a pod's annotations. Keys without flock's prefix are none of its
// business; unknown ones with it make a warning, and so does an invalid ip-algo:
// the node's default applies then, and the pod starts. The error is of type Errors.
func Parse(annotations map[string]string, defaults config.Defaults) (Request, []Warning, error) {
	p := parser{annotations: annotations}
	r := Request{
		IPv6:  p.boolean(IPv6, defaults.IPv6),
		IPv4:  p.boolean(IPv4, defaults.IPv4),
		CIDR6: p.cidr(CIDR6, false),
		CIDR4: p.cidr(CIDR4, true),
	}
	r.Static = p.addresses(Addresses)
	r.Anycast = p.addresses(Anycast)
	r.IPAlgo = p.ipAlgo(defaults.IPAlgo)

	p.warnUnknown()
	if len(p.errs) == 0 {
		p.checkFamilies(r)
		p.checkTwice(r)
		p.checkUseless(r)
	}
	if len(p.errs) > 0 {
		slices.SortStableFunc(p.errs, func(a, b *Error) int {
			return slices.Index(Keys, a.Key) - slices.Index(Keys, b.Key)
		})
		return Request{}, p.warnings, p.errs
	}
	return r, p.warnings, nil
}

// Lists returns the addresses that a pod asks for by name. A list that Parse would refuse
// is empty.
func Lists(annotations map[string]string) (static, anycast []netip.Addr) {
	list := func(key string) []netip.Addr {
		p := parser{annotations: annotations}
		return p.addresses(key)
	}
	return list(Addresses), list(Anycast)
}

type parser struct {
	annotations map[string]string
	errs        Errors
	warnings    []Warning
}

func (p *parser) refuse(key, format string, args ...any) {
	p.errs = append(p.errs, &Error{Key: key, Value: p.annotations[key], Want: fmt.Sprintf(format, args...)})
}

func (p *parser) warn(format string, args ...any) {
	p.warnings = append(p.warnings, Warning(fmt.Sprintf(format, args...)))
}

func (p *parser) boolean(key string, otherwise bool) bool {
	switch v, ok := p.annotations[key]; {
	case !ok:
		return otherwise
	case v == "true":
		return true
	case v == "false":
		return false
	}
	p.refuse(key, `want "true" or "false"`)
	return otherwise
}

func (p *parser) cidr(key string, ipv4 bool) netip.Prefix {
	v, ok := p.annotations[key]
	if !ok {
		return netip.Prefix{}
	}
	prefix, err := netip.ParsePrefix(strings.TrimSpace(v))
	example, other := "2001:db8:1::/64", CIDR4
	if ipv4 {
		example, other = "10.1.0.0/24", CIDR6
	}
	switch {
	case err != nil || prefix.Addr().Is4In6():
		p.refuse(key, "not a CIDR: want one of the node's CIDRs or a part of one, as in %s, or no such annotation", example)
	case prefix.Addr().Is4() != ipv4:
		p.refuse(key, "is of the other family: write it as %s", other)
	case prefix != prefix.Masked():
		p.refuse(key, "has bits set behind the prefix length: want %s", prefix.Masked())
	default:
		return prefix
	}
	return netip.Prefix{}
}

func (p *parser) addresses(key string) []netip.Addr {
	v, ok := p.annotations[key]
	if !ok {
		return nil
	}
	items := strings.Split(v, ",")
	if len(items) > MaxAddresses {
		p.refuse(key, "lists %d addresses: %d at most", len(items), MaxAddresses)
		return nil
	}
	var out []netip.Addr
	seen := map[netip.Addr]bool{}
	for i, item := range items {
		item = strings.TrimSpace(item)
		a, err := netip.ParseAddr(item)
		switch {
		case strings.TrimSpace(v) == "":
			p.refuse(key, "is empty: list addresses, as in 2001:db8::7,192.0.2.7, or leave the annotation out")
		case item == "":
			p.refuse(key, "item %d is empty: want addresses separated by single commas", i+1)
		case err != nil && strings.Contains(item, "/"):
			p.refuse(key, "%s is not an address: leave out the prefix length", quote(item))
		case err != nil:
			p.refuse(key, "%s is not an address: want addresses separated by commas, as in 2001:db8::7,192.0.2.7", quote(item))
		case netaddr.UnroutableReason(a) != "":
			p.refuse(key, "%s is %s: want a global or unique local unicast address", quote(item), netaddr.UnroutableReason(a))
		case seen[a]:
			p.refuse(key, "lists %s twice: once is enough", a)
		default:
			seen[a] = true
			out = append(out, a)
			continue
		}
		return nil // the first error is enough: the others may be hundreds
	}
	return out
}

func (p *parser) ipAlgo(otherwise []v1alpha1.IPAlgo) []v1alpha1.IPAlgo {
	if v, ok := p.annotations[IPAlgo]; ok {
		if strings.TrimSpace(v) == random {
			return nil
		}
		var fields []v1alpha1.IPAlgo
		for _, f := range strings.Split(v, ",") {
			fields = append(fields, v1alpha1.IPAlgo(strings.TrimSpace(f)))
		}
		wrong := wrongAlgo(fields)
		if wrong == "" {
			return fields
		}
		p.warn("annotation %s=%s is ignored, the node's default applies: %s; want namespace, app and image, each at most once, separated by commas, or random", IPAlgo, quote(v), wrong)
	}
	if wrong := wrongAlgo(otherwise); wrong != "" && len(otherwise) > 0 {
		p.warn("the node's spec.defaults.ipAlgo is ignored, the address is random: %s; want namespace, app and image, each at most once", wrong)
		return nil
	}
	return slices.Clone(otherwise)
}

func wrongAlgo(fields []v1alpha1.IPAlgo) string {
	for i, f := range fields {
		switch {
		case !slices.Contains(embed.Fields, f):
			return fmt.Sprintf("there is no field %s", quote(string(f)))
		case slices.Contains(fields[:i], f):
			return fmt.Sprintf("lists %s twice", f)
		}
	}
	return ""
}

// checkFamilies refuses a pod without an address, and what belongs to a family
// that the pod does not have.
func (p *parser) checkFamilies(r Request) {
	if !r.IPv6 && !r.IPv4 {
		// The one to blame is the one that was switched off by hand.
		switch {
		case p.annotations[IPv6] == "false":
			p.refuse(IPv6, `leaves the pod without an address, as IPv4 is off%s: set one of %s and %s to "true"`, p.disabledBy(IPv4), IPv6, IPv4)
		case p.annotations[IPv4] == "false":
			p.refuse(IPv4, `leaves the pod without an address, as IPv6 is off%s: set one of %s and %s to "true"`, p.disabledBy(IPv6), IPv6, IPv4)
		default:
			p.refuse(IPv6, `is not set, and the node has both families off by default: set %s or %s to "true"`, IPv6, IPv4)
		}
		return
	}
	for _, f := range []struct {
		on           bool
		family       string
		key, cidrKey string
		cidr         netip.Prefix
		is           func(netip.Addr) bool
	}{
		{r.IPv6, "IPv6", IPv6, CIDR6, r.CIDR6, netip.Addr.Is6},
		{r.IPv4, "IPv4", IPv4, CIDR4, r.CIDR4, netip.Addr.Is4},
	} {
		static, _ := r.Primary(f.is)
		if f.cidr.IsValid() && static.IsValid() {
			p.refuse(f.cidrKey, "contradicts the static address %s of %s: remove one of the two", static, Addresses)
		}
		if f.on {
			continue
		}
		if f.cidr.IsValid() {
			p.refuse(f.cidrKey, `%s is off%s: remove this annotation, or set %s to "true"`, f.family, p.disabledBy(f.key), f.key)
		}
		for _, list := range []struct {
			key   string
			addrs []netip.Addr
		}{{Addresses, r.Static}, {Anycast, r.Anycast}} {
			if i := slices.IndexFunc(list.addrs, f.is); i >= 0 {
				p.refuse(list.key, `asks for %s, but %s is off%s: remove it, or set %s to "true"`, list.addrs[i], f.family, p.disabledBy(f.key), f.key)
			}
		}
	}
}

// disabledBy says what switched a family off.
func (p *parser) disabledBy(key string) string {
	if _, ok := p.annotations[key]; ok {
		return fmt.Sprintf(" by %s", key)
	}
	return " by the node's default"
}

func (p *parser) checkTwice(r Request) {
	for _, a := range r.Anycast {
		if slices.Contains(r.Static, a) {
			p.refuse(Anycast, "%s is in %s too: an address is either the pod's own or shared with others, list it once", a, Addresses)
		}
	}
}

// checkUseless warns of what has no effect.
func (p *parser) checkUseless(r Request) {
	if _, ok := p.annotations[IPAlgo]; !ok {
		return
	}
	static, _ := r.Primary(netip.Addr.Is6)
	switch {
	case static.IsValid():
		p.warn("annotation %s has no effect: the pod's IPv6 address is %s, by %s", IPAlgo, static, Addresses)
	case !r.IPv6:
		p.warn("annotation %s has no effect: IPv6 is off%s", IPAlgo, p.disabledBy(IPv6))
	}
}

// mostUnknown bounds the warnings of one pod: each is a line in the log and an Event, at
// each try of the kubelet, and a pod may have thousands of annotations.
const mostUnknown = 8

func (p *parser) warnUnknown() {
	var unknown []string
	for key := range p.annotations {
		if name, ok := strings.CutPrefix(key, Prefix); ok && !slices.Contains(Keys, key) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown[:min(len(unknown), mostUnknown)] {
		p.warn("annotation %s is unknown and ignored: %s", Prefix+plain(name), suggestion(name))
	}
	if more := len(unknown) - mostUnknown; more > 0 {
		p.warn("%d more annotations that begin with %s are unknown and ignored", more, Prefix)
	}
}
