package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
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
	// Static, Anycast and Service are the uses that the pool allows; at least one.
	Static, Anycast, Service bool
	// Services is how Services get addresses, if Service.
	Services PoolServices
	// MaxPerNamespace is how many of the addresses the pods of one namespace may hold;
	// 0: no limit.
	MaxPerNamespace int
	// Quarantine is how long a static address stays claimed after its pod has ended.
	Quarantine time.Duration
	Routing    PoolRouting
}

// PoolServices is how Services get addresses of a pool.
type PoolServices struct {
	// AutoAssign: also a Service that names neither address nor pool gets one.
	AutoAssign bool
	// Sharing is which Services may share an address; never "".
	Sharing v1alpha1.ServiceSharing
	// ExternalIPs: the pool's addresses may be in spec.externalIPs.
	ExternalIPs bool
}

// PoolRouting is how a pool's addresses are announced.
type PoolRouting struct {
	// Export is in addition to the peers' own; its single values go before theirs.
	// LocalPreference is for internal peers only, Prepend for external ones.
	Export Export
	// AnnounceDelay is how long a pod must have been Ready, 0 to 1 hour.
	AnnounceDelay time.Duration
	// Aggregate: addresses of Services are announced as the pool's CIDR around them.
	Aggregate bool
}

// Covering returns the pool's CIDR that addr lies in.
func (p Pool) Covering(addr netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(p.CIDRs, func(c netip.Prefix) bool { return c.Contains(addr) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return p.CIDRs[i], true
}

// Admits says whether the pool admits a namespace with these labels.
func (p Pool) Admits(namespace labels.Set) bool { return p.Namespaces.Matches(namespace) }

// Admission is which namespaces a selector admits, for people: it reads after "admits only
// namespaces with".
func Admission(namespaces labels.Selector) string {
	if requirements, some := namespaces.Requirements(); some && len(requirements) > 0 {
		return "labels " + namespaces.String()
	}
	return "labels that no namespace has"
}

// Deciding returns the pools that decide about addr, by name: those with the longest prefix
// around it. Wider ones are not asked: an operator who carves a pool out of another one has
// taken the addresses away from it, and the routes' attributes follow the same rule.
func Deciding(pools []Pool, addr netip.Addr) (deciding []Pool) {
	longest := -1
	for _, p := range pools {
		cidr, covers := p.Covering(addr)
		if !covers || cidr.Bits() < longest {
			continue
		}
		if cidr.Bits() > longest {
			longest, deciding = cidr.Bits(), nil
		}
		deciding = append(deciding, p)
	}
	slices.SortFunc(deciding, func(a, b Pool) int { return strings.Compare(a.Name, b.Name) })
	return deciding
}

// ParsePool checks ap and returns it typed. The error joins everything that is
// wrong, each with the field, its value and what is wanted.
func ParsePool(ap *v1alpha1.AddressPool) (Pool, error) {
	spec := field.NewPath("spec")
	var errs field.ErrorList
	p := Pool{Name: ap.Name, Quarantine: DefaultQuarantine, Namespaces: parseSelector(spec.Child("namespaceSelector"), ap.Spec.NamespaceSelector, &errs)}

	cidrs := spec.Child("cidrs")
	if len(ap.Spec.CIDRs) == 0 {
		errs = append(errs, field.Required(cidrs, "name at least one CIDR"))
	}
	p.CIDRs = parseCIDRs(cidrs, ap.Spec.CIDRs, &errs)
	checkFamily(cidrs, p.CIDRs, netip.Addr.IsValid, 1, 128, &errs)
	checkOverlap(cidrs, p.CIDRs, &errs)

	if len(ap.Spec.Uses) == 0 {
		errs = append(errs, field.Required(spec.Child("uses"), "name at least one of static, anycast and service"))
	}
	for i, u := range ap.Spec.Uses {
		switch u {
		case v1alpha1.UseStatic:
			p.Static = true
		case v1alpha1.UseAnycast:
			p.Anycast = true
		case v1alpha1.UseService:
			p.Service = true
		default:
			errs = append(errs, field.NotSupported(spec.Child("uses").Index(i), u, []v1alpha1.PoolUse{v1alpha1.UseStatic, v1alpha1.UseAnycast, v1alpha1.UseService}))
		}
	}
	p.Services = parsePoolServices(spec.Child("services"), p.Service, ap.Spec.Services, &errs)
	if ap.Spec.Routing.Aggregate && !p.Service {
		errs = append(errs, field.Invalid(spec.Child("routing", "aggregate"), true, "is for pools with the use service: add service to uses, or leave aggregate out"))
	}
	p.MaxPerNamespace = parseMaxPerNamespace(spec, ap.Spec.MaxAddressesPerNamespace, &errs)
	if q := ap.Spec.QuarantineSeconds; q != nil {
		if *q < 0 || *q > 86400 {
			errs = append(errs, field.Invalid(spec.Child("quarantineSeconds"), *q, "must be between 0 and 86400 seconds"))
		}
		p.Quarantine = time.Duration(*q) * time.Second
	}
	p.Routing = parsePoolRouting(spec.Child("routing"), ap.Spec.Routing, &errs)
	if err := errs.ToAggregate(); err != nil {
		return Pool{}, fmt.Errorf("addresspool %s: %w", ap.Name, err)
	}
	return p, nil
}

func parsePoolServices(path *field.Path, use bool, s *v1alpha1.PoolServices, errs *field.ErrorList) PoolServices {
	out := PoolServices{AutoAssign: true, Sharing: v1alpha1.SharingNamespace}
	if s == nil {
		return out
	}
	if !use {
		*errs = append(*errs, field.Invalid(path, "{}", "is for pools with the use service: add service to uses, or leave services out"))
	}
	oneOf(path.Child("sharing"), s.Sharing, errs, "", v1alpha1.SharingNone, v1alpha1.SharingNamespace, v1alpha1.SharingPool)
	if s.AutoAssign != nil {
		out.AutoAssign = *s.AutoAssign
	}
	if s.Sharing != "" {
		out.Sharing = s.Sharing
	}
	out.ExternalIPs = s.ExternalIPs
	return out
}

func parseMaxPerNamespace(parent *field.Path, n int32, errs *field.ErrorList) int {
	if n < 0 {
		*errs = append(*errs, field.Invalid(parent.Child("maxAddressesPerNamespace"), n, "must be at least 1; leave it out for no limit"))
	}
	return int(n)
}

func parseSelector(path *field.Path, s metav1.LabelSelector, errs *field.ErrorList) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(&s)
	if err != nil {
		*errs = append(*errs, field.Invalid(path, fmt.Sprint(s.MatchExpressions), fmt.Sprintf("not a label selector: %s", err)))
	}
	return selector
}

func parsePoolRouting(path *field.Path, r v1alpha1.PoolRouting, errs *field.ErrorList) PoolRouting {
	out := PoolRouting{Export: parseExport(path, &r.BGPExport, true, errs), Aggregate: r.Aggregate}
	if d := r.AnnounceDelay; d != nil {
		if d.Duration < 0 || d.Duration > time.Hour {
			*errs = append(*errs, field.Invalid(path.Child("announceDelay"), d.Duration.String(), "must be between 0s and 1h"))
		}
		out.AnnounceDelay = d.Duration
	}
	return out
}
