// Package netns runs functions in other network namespaces. It works on Linux only
// and needs CAP_SYS_ADMIN.
package netns
