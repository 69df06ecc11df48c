// Package version holds the version that the programs of one build share.
package version

// Version is set by the linker (see the Makefile).
var Version = "dev"
