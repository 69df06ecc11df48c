package config

import (
	"fmt"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Defaults of OSPF. The intervals are those of RFC 2328 appendix C.3, since both
// ends of a link must agree.
const (
	DefaultOSPFCost          = 20
	DefaultOSPFInterfaceCost = 65535
	DefaultOSPFHello         = 10 * time.Second
	DefaultOSPFDead          = 40 * time.Second
)

// OSPF is the node as an OSPF router.
type OSPF struct {
	RouterID   netip.Addr // IPv4
	Area       netip.Addr // IPv4; 0.0.0.0 is the backbone
	IPv6, IPv4 bool       // the families, at least one
	// IPv4OverV3: RFC 5838 in place of OSPFv2.
	IPv4OverV3 bool
	Interfaces []OSPFInterface // in the order given, names unique
	Cost       int             // of the node's routes
	External1  bool            // and the cost of the way adds up
	Sources    Sources
	Import     Import
}

// OSPFInterface is an interface that OSPF is spoken on. Every default is in place.
type OSPFInterface struct {
	Name           string
	Cost           int
	PointToPoint   bool
	Priority       uint8
	Hello, Dead    time.Duration // whole seconds
	BFD            *BFD          // nil if off
	Authentication *OSPFAuthentication
}

// OSPFAuthentication is a shared key.
type OSPFAuthentication struct {
	Password SecretRef
	KeyID    uint8
	// IPv6 and IPv4 are the algorithms of the families; "": not authenticated.
	IPv6, IPv4 v1alpha1.OSPFAlgorithm
}

func parseOSPF(path *field.Path, o *v1alpha1.OSPF, errs *field.ErrorList) *OSPF {
	out := &OSPF{
		RouterID:   parseRouterID(path.Child("routerID"), o.RouterID, errs),
		Area:       netip.IPv4Unspecified(),
		IPv4OverV3: o.IPv4Version == v1alpha1.OSPFv3,
		Cost:       int(orDefault(o.Cost, DefaultOSPFCost)),
		External1:  o.MetricType != 2,
		Sources:    parseSources(path.Child("sourceAddresses"), o.SourceAddresses, errs),
		Import:     parseImport(path.Child("import"), o.Import, errs),
	}
	if o.Area != "" {
		area, err := netip.ParseAddr(o.Area)
		if err != nil || !area.Is4() {
			*errs = append(*errs, field.Invalid(path.Child("area"), o.Area, "must be four decimal numbers: 0.0.0.0 for the backbone, 0.0.0.7 for area 7"))
		}
		out.Area = area
	}
	oneOf(path.Child("ipv4Version"), o.IPv4Version, errs, "", v1alpha1.OSPFv2, v1alpha1.OSPFv3)
	oneOf(path.Child("metricType"), o.MetricType, errs, 0, 1, 2)
	out.IPv6, out.IPv4 = parseFamilies(path.Child("families"), o.Families, errs)
	between(path.Child("cost"), int64(out.Cost), 1, 1<<24-2, errs)
	if len(o.Interfaces) == 0 {
		*errs = append(*errs, field.Required(path.Child("interfaces"), "name at least one interface, or leave spec.ospf out"))
	}
	names := map[string]bool{}
	for i, in := range o.Interfaces {
		at := path.Child("interfaces").Index(i)
		if names[in.Name] {
			*errs = append(*errs, field.Duplicate(at.Child("name"), in.Name))
		}
		names[in.Name] = true
		out.Interfaces = append(out.Interfaces, parseOSPFInterface(at, in, errs))
		if a := in.Authentication; a != nil && a.IPv4Algorithm == v1alpha1.OSPFMD5 && out.IPv4OverV3 {
			*errs = append(*errs, field.Invalid(at.Child("authentication", "ipv4Algorithm"), a.IPv4Algorithm, "OSPFv3 has no md5 (RFC 7166): leave out authentication.ipv4Algorithm, or set ipv4Version to v2"))
		}
	}
	return out
}

func parseOSPFInterface(at *field.Path, in v1alpha1.OSPFInterface, errs *field.ErrorList) OSPFInterface {
	if !isInterfaceName(in.Name) {
		*errs = append(*errs, field.Invalid(at.Child("name"), in.Name, notAnInterface))
	}
	hello := orDefault(in.HelloSeconds, int32(DefaultOSPFHello/time.Second))
	dead := orDefault(in.DeadSeconds, int32(DefaultOSPFDead/time.Second))
	out := OSPFInterface{
		Name:         in.Name,
		Cost:         int(orDefault(in.Cost, DefaultOSPFInterfaceCost)),
		PointToPoint: in.NetworkType == v1alpha1.OSPFPointToPoint,
		Priority:     uint8(in.Priority),
		Hello:        seconds(hello),
		Dead:         seconds(dead),
		BFD:          parseBFD(at.Child("bfd"), in.BFD, errs),
	}
	between(at.Child("cost"), int64(out.Cost), 1, 65535, errs)
	between(at.Child("priority"), int64(in.Priority), 0, 255, errs)
	between(at.Child("helloSeconds"), int64(hello), 1, 65535, errs)
	between(at.Child("deadSeconds"), int64(dead), 2, 65535, errs)
	if hello >= 1 && dead >= 2 && int64(dead) < 2*int64(hello) {
		*errs = append(*errs, field.Invalid(at.Child("deadSeconds"), dead, fmt.Sprintf("must be at least twice helloSeconds, %d, or one lost packet ends the adjacency; four times is usual (RFC 2328 appendix C.3)", hello)))
	}
	oneOf(at.Child("networkType"), in.NetworkType, errs, "", v1alpha1.OSPFBroadcast, v1alpha1.OSPFPointToPoint)
	if a := in.Authentication; a != nil {
		out.Authentication = parseOSPFAuthentication(at.Child("authentication"), a, errs)
	}
	return out
}

func parseOSPFAuthentication(path *field.Path, a *v1alpha1.OSPFAuthentication, errs *field.ErrorList) *OSPFAuthentication {
	oneOf(path.Child("algorithm"), a.Algorithm, errs, "", v1alpha1.OSPFSHA256, v1alpha1.OSPFSHA384, v1alpha1.OSPFSHA512)
	oneOf(path.Child("ipv4Algorithm"), a.IPv4Algorithm, errs, "", v1alpha1.OSPFMD5, v1alpha1.OSPFSHA256, v1alpha1.OSPFSHA384, v1alpha1.OSPFSHA512)
	out := &OSPFAuthentication{
		Password: *parseSecretRef(path.Child("passwordSecretRef"), &a.PasswordSecretRef, errs),
		KeyID:    1,
		IPv6:     v1alpha1.OSPFSHA256,
	}
	if a.KeyID != 0 {
		between(path.Child("keyID"), int64(a.KeyID), 1, 255, errs)
		out.KeyID = uint8(a.KeyID)
	}
	if a.Algorithm != "" {
		out.IPv6 = a.Algorithm
	}
	out.IPv4 = out.IPv6
	if a.IPv4Algorithm != "" {
		out.IPv4 = a.IPv4Algorithm
	}
	ipv6, ipv4 := parseFamilies(path.Child("families"), a.Families, errs)
	if !ipv6 {
		out.IPv6 = ""
	}
	if !ipv4 {
		out.IPv4 = ""
	}
	return out
}
