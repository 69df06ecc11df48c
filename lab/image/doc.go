// Package image writes container images as files, with neither an engine nor a
// registry, as `ctr -n k8s.io images import` takes them.
//
// An image is a function of what is put into it: entries are sorted, times are
// zero and owners are given, so the same files make the same digest and a second
// import finds everything there already. It never runs a program from the image
// and never reads a file that its Spec does not name.
package image
