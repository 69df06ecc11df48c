// Package release makes what a user of flock downloads: programs, the container image,
// manifests, a bill of materials and checksums. It needs neither a container engine nor
// a registry.
//
// The same commit makes the same bytes. Nothing depends on the time, the machine's user,
// the path of the checkout or the order of a directory. Three things are pinned: Go by
// the toolchain that runs this program, Go modules by go.sum, and Debian's packages, of
// which the image has BIRD, by the checksums in debian.lock. What differs between two
// machines with one Go version is a defect.
package release
