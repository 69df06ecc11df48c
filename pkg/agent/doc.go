// Package agent composes flock's features into what runs on a node. It decides
// nothing itself. Each of its parts owns its state and publishes what others need in
// a cell, which has one writer; compose in agent.go lists the parts. What a part
// offers to the whole (conditions, status fields, readiness, metrics, a loop) is
// picked up from that list by the interfaces in part.go. Linux only.
package agent
