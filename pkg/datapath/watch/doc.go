// Package watch keeps the kernel's state what the features of the datapath want it to be,
// whatever other programs do.
//
// A [Watcher] hears of the kernel's changes over netlink. A change that this process did not
// make, of a kind of object that a feature has, is a reason to call that feature's Sync, a few
// milliseconds later and for all changes of a burst together. Every half minute, and after a
// failure, Sync is called without one: some changes have no notification, and notifications may
// be lost.
//
// Two things bound the cost. A feature's Syncs take two percent of the time at most, however
// fast others make changes, but for the first tenth of a second of them. And an
// object that was repaired more than a few times within a minute is one that another program
// keeps changing: repairs of its feature then become rarer, down to one in a few seconds, and
// [Status] reports it, with the process if the kernel names it.
//
// The package knows nothing of what features do. It owns no state in the kernel.
package watch
