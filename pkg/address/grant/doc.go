// Package grant decides who may have which address.
//
// Annotations are written by tenants, so they are requests, not orders (package
// annotation). Decide holds a pod's request against the node's CIDRs, the
// AddressPools and what is in use, and answers with a Plan or with the reason why
// not. It is pure: it looks at values only and holds nothing; Take then holds a
// Plan's addresses in the node's allocator, all of them or none.
//
// Invariants: an address outside the node's CIDRs is granted only by a pool that
// covers it, allows the use and admits the namespace of the pod; where pools overlap,
// the longest prefix decides alone. No plan holds an address of the node, one that
// the node keeps back, or one that another pod holds for itself.
package grant
