// Package installer puts the CNI plugin and its network configuration onto a
// node, and takes them off again, with flock's nftables tables.
//
// It decides whether a file there is flock's own, somebody's edit of it, or
// something else, and touches only the first kind. It never touches what the
// agent keeps in its state directory, nor another network's configuration.
//
// What it keeps, whenever it is killed: each file is there as a whole, as it was
// or as it is to be; and where there is a configuration that names the plugin,
// there is the plugin. A runtime may start and read both at any time.
package installer
