// Package image writes container images as files, with neither an engine nor a
// registry: a tar in the OCI image layout (image-spec v1.1, image-layout.md)
// with one uncompressed layer, as `ctr -n k8s.io images import` takes it.
//
// An image is a function of what is put into it: entries are sorted, times are
// zero and owners are given, so the same files make the same digest and a second
// import finds everything there already. It never runs a program from the image
// and never reads a file that its Spec does not name.
//
// The layout is made by hand from the types of image-spec, which the Kubernetes
// modules bring anyway: it is one tar inside another and three JSON documents.
// go-containerregistry would do it too, with a registry client, its credential
// helpers and docker's configuration behind it.
package image
