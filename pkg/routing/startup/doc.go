// Package startup decides when a node takes its first pods after a boot: once the
// routers know the way to them. A pod that comes up earlier is Ready, and gets
// traffic, where the fabric has no route to it or still one that is stale.
//
// The decision is pure. It is latched: what was decided once holds for the rest of
// the boot, so that neither an agent that starts again nor a session that is lost
// keeps pods away, let alone evicts them. The package also says what the Node object
// is to show of it.
package startup
