// Package fleet decides what the NodeConfig of a node should be where it is not
// written by hand: which NodeConfigTemplate is the node's, and what that makes of
// the node's own facts. It is pure; each node's agent asks it about its own node and
// writes what it says. flock-controller asks it whose turn it is to follow a change.
//
// What somebody wrote by hand counts alone and whole, and so does the best template:
// nothing is merged field by field. Where no NodeConfig can be made, the one that is
// there is left as it is.
package fleet
