// Package routingtest gives tests network namespaces with real routing daemons
// in them, and deletes them again. Nothing of it touches the machine's own
// namespace.
package routingtest
