package config

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Import is what a node takes from its routers.
type Import struct {
	Policy            v1alpha1.ImportPolicy
	Prefixes          []PrefixMatch // with policy prefixes only
	MaxPrefixes       int           // of each family
	MaxPrefixesAction v1alpha1.MaxPrefixesAction
}

// Any reports whether anything is taken.
func (i Import) Any() bool { return i.Policy != v1alpha1.ImportNone }

// PrefixMatch matches the prefixes within Prefix of Min to Max bits.
type PrefixMatch struct {
	Prefix   netip.Prefix
	Min, Max int
}

func parseImport(path *field.Path, i *v1alpha1.Import, errs *field.ErrorList) Import {
	if i == nil {
		i = &v1alpha1.Import{Policy: v1alpha1.ImportNone}
	}
	out := Import{
		Policy:            i.Policy,
		MaxPrefixes:       int(orDefault(i.MaxPrefixes, DefaultMaxPrefixes)),
		MaxPrefixesAction: i.MaxPrefixesAction,
	}
	between(path.Child("maxPrefixes"), int64(out.MaxPrefixes), 1, 10_000_000, errs)
	oneOf(path.Child("maxPrefixesAction"), i.MaxPrefixesAction, errs, "", v1alpha1.MaxPrefixesBlock, v1alpha1.MaxPrefixesWarn, v1alpha1.MaxPrefixesRestart, v1alpha1.MaxPrefixesDisable)
	if i.MaxPrefixesAction == "" {
		out.MaxPrefixesAction = v1alpha1.MaxPrefixesBlock
	}
	oneOf(path.Child("policy"), i.Policy, errs, v1alpha1.ImportNone, v1alpha1.ImportDefault, v1alpha1.ImportAll, v1alpha1.ImportPrefixes)
	if (i.Policy == v1alpha1.ImportPrefixes) != (len(i.Prefixes) > 0) {
		*errs = append(*errs, field.Invalid(path.Child("prefixes"), len(i.Prefixes), "prefixes and policy go together: list prefixes with policy prefixes, and only then"))
	}
	for n, m := range i.Prefixes {
		out.Prefixes = append(out.Prefixes, parsePrefixMatch(path.Child("prefixes").Index(n), m, errs))
	}
	return out
}

func parsePrefixMatch(path *field.Path, m v1alpha1.PrefixMatch, errs *field.ErrorList) PrefixMatch {
	ps := parseCIDRs(path.Child("prefix"), []v1alpha1.CIDR{m.Prefix}, errs)
	if len(ps) == 0 {
		return PrefixMatch{}
	}
	p := ps[0]
	out := PrefixMatch{Prefix: p, Min: p.Bits(), Max: p.Bits()}
	if m.GE != nil {
		out.Min, out.Max = int(*m.GE), p.Addr().BitLen()
	}
	if m.LE != nil {
		out.Max = int(*m.LE)
	}
	if out.Min < p.Bits() || out.Max < out.Min || out.Max > p.Addr().BitLen() {
		*errs = append(*errs, field.Invalid(path, p.String(), "want prefix length <= ge <= le, as in prefix: 2001:db8::/32, ge: 40, le: 64; le is at most 32 for IPv4"))
	}
	return out
}
