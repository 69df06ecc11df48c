// Package routingtest gives tests network namespaces with real routing daemons
// in them. Nothing of it touches the machine's own namespace, and nothing is
// left of it after the test.
package routingtest
