package v1alpha1

// LoadBalancerClass is the spec.loadBalancerClass of the Services of type LoadBalancer to
// which flock-controller gives addresses and which flock's agents announce. The addresses
// are in status.loadBalancer.ingress[].ip, with ipMode VIP, and the ports for which the
// Service holds them beside.
//
// flock-controller also takes Services without a class if it is set to. So these are
// flock's: those of this class, and those without one that have the condition
// ServiceAddressAssigned, which only it writes.
const LoadBalancerClass = GroupName + "/bgp"

// ServiceProxyNameLabel is Kubernetes' label that names the proxy of a Service. kube-proxy
// passes over a Service that has it.
const ServiceProxyNameLabel = "service.kubernetes.io/service-proxy-name"

// Annotations of these Services.
const (
	// ServiceAddressesAnnotation names the addresses that the Service wants, at most one of
	// each family, separated by commas.
	ServiceAddressesAnnotation = GroupName + "/addresses"
	// ServicePoolAnnotation names the AddressPool from which the Service wants addresses.
	ServicePoolAnnotation = GroupName + "/pool"
	// ServiceSharedWithAnnotation names the Services with which the Service shares its
	// addresses, as NAME or NAMESPACE/NAME, separated by commas. Of two Services in the same
	// namespace one must name the other, else each.
	ServiceSharedWithAnnotation = GroupName + "/shared-with"
)

// ServiceAddressAssigned is the condition in status.conditions of these Services: whether
// the Service has an address of each family that it must have. Where it is not True, its
// message says why.
const ServiceAddressAssigned = GroupName + "/AddressAssigned"

// ServiceExternalIPsAdmitted is the condition in status.conditions of Services with an
// address of an AddressPool in spec.externalIPs: whether nodes may announce all of these.
// Where it is not True, its message says why.
const ServiceExternalIPsAdmitted = GroupName + "/ExternalIPsAdmitted"
