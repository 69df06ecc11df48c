// Package scrape lets monitoring read the agent and flock-controller from another machine:
// over TLS, and only those whom the API server allows it. It decides who may read; what there is to read is
// its caller's.
//
// It asks the API server with a TokenReview and a SubjectAccessReview, as the kubelet does
// for its own metrics. While the API server does not answer, those who were allowed in the
// last hour still are: that is when metrics matter most. Nobody else is then.
package scrape
