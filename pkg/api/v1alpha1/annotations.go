package v1alpha1

// PolicyLogAnnotation, on a Namespace, says whether connections of its pods that network
// policies deny are logged by the agents: [PolicyLogDeny] or, as without it,
// [PolicyLogOff].
const (
	PolicyLogAnnotation = "flock.fritzlab.net/policy-log"
	PolicyLogDeny       = "deny"
	PolicyLogOff        = "off"
)
