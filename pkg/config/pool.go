package config

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Pool is what a valid AddressPool says.
type Pool struct {
	Name string
	// CIDRs are masked, in the order given, and do not overlap one another; those
	// of two pools may.
	CIDRs []netip.Prefix
	// Namespaces selects by the labels of a pod's namespace.
	Namespaces labels.Selector
	// Static and Anycast tell what the addresses may be asked for as; at least one.
	Static, Anycast bool
	Routing         PoolRouting
}

// PoolRouting is how a pool's addresses are announced.
type PoolRouting struct {
	// Export is in addition to the peers' own; its single values go before theirs.
	// LocalPreference is for internal peers only, Prepend for external ones.
	Export Export
	// AnnounceDelay is how long a pod must have been Ready, 0 to 1 hour.
	AnnounceDelay time.Duration
}

// Covering returns the pool's CIDR that addr lies in.
func (p Pool) Covering(addr netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(p.CIDRs, func(c netip.Prefix) bool { return c.Contains(addr) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return p.CIDRs[i], true
}

// ParsePool checks ap and returns it typed. The error joins everything that is
// wrong, each with the field, its value and what is wanted.
func ParsePool(ap *v1alpha1.AddressPool) (Pool, error) {
	spec := field.NewPath("spec")
	var errs field.ErrorList
	p := Pool{Name: ap.Name, Namespaces: parseSelector(spec.Child("namespaceSelector"), ap.Spec.NamespaceSelector, &errs)}

	cidrs := spec.Child("cidrs")
	if len(ap.Spec.CIDRs) == 0 {
		errs = append(errs, field.Required(cidrs, "name at least one CIDR"))
	}
	p.CIDRs = parseCIDRs(cidrs, ap.Spec.CIDRs, &errs)
	checkFamily(cidrs, p.CIDRs, netip.Addr.IsValid, 1, 128, &errs)
	checkOverlap(cidrs, p.CIDRs, &errs)

	if len(ap.Spec.Uses) == 0 {
		errs = append(errs, field.Required(spec.Child("uses"), "name static, anycast, or both"))
	}
	for i, u := range ap.Spec.Uses {
		switch u {
		case v1alpha1.UseStatic:
			p.Static = true
		case v1alpha1.UseAnycast:
			p.Anycast = true
		default:
			errs = append(errs, field.NotSupported(spec.Child("uses").Index(i), u, []v1alpha1.PoolUse{v1alpha1.UseStatic, v1alpha1.UseAnycast}))
		}
	}
	p.Routing = parsePoolRouting(spec.Child("routing"), ap.Spec.Routing, &errs)
	if err := errs.ToAggregate(); err != nil {
		return Pool{}, fmt.Errorf("addresspool %s: %w", ap.Name, err)
	}
	return p, nil
}

func parseSelector(path *field.Path, s metav1.LabelSelector, errs *field.ErrorList) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(&s)
	if err != nil {
		*errs = append(*errs, field.Invalid(path, fmt.Sprint(s.MatchExpressions), fmt.Sprintf("not a label selector: %s", err)))
	}
	return selector
}

func parsePoolRouting(path *field.Path, r v1alpha1.PoolRouting, errs *field.ErrorList) PoolRouting {
	out := PoolRouting{Export: parseExport(path, &r.BGPExport, true, errs)}
	if d := r.AnnounceDelay; d != nil {
		if d.Duration < 0 || d.Duration > time.Hour {
			*errs = append(*errs, field.Invalid(path.Child("announceDelay"), d.Duration.String(), "must be between 0s and 1h"))
		}
		out.AnnounceDelay = d.Duration
	}
	return out
}
