// Package v1alpha1 holds flock's API types, group flock.fritzlab.net.
//
// What can be checked without looking at a second object is checked by the API
// server: the OpenAPI schema and the CEL rules in the markers below become the
// CRDs under deploy/chart/base/crds (make generate). pkg/config turns an accepted object into types
// that cannot hold a bad value; nothing else reads these strings.
//
// +kubebuilder:object:generate=true
// +groupName=flock.fritzlab.net
package v1alpha1
