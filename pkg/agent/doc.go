// Package agent composes flock's parts into what runs on a node. It holds no
// idea of its own: it takes the NodeConfig to the parts that act on it, and a
// CNI call through allocation, record and wiring in the order that survives a
// kill at any point. Linux only.
package agent
