// Package timeslice asks the kernel's scheduler for a processor at once (Linux only):
// by short turns, or by real-time priority.
//
// A kernel from 6.12 on lets those that want little at a time go ahead of those
// that want much (EEVDF; sched_setattr(2), sched_runtime of SCHED_OTHER): on a
// busy node a withdrawal takes its turn when it is due, not when others'
// milliseconds are over. Who asks gets no more of the processor for it, and needs
// no privilege. Older kernels take no notice.
//
// Short turns do not help a process whose cgroup has had more than its share of late.
// Real-time priority does (SCHED_RR, sched(7)): the thread runs before all that have
// none. It needs CAP_SYS_NICE, and on a kernel with RT_GROUP_SCHED a share of real time
// for the cgroup.
//
// It never touches the nice value or a thread of another process than the caller
// names, and links next to nothing: flock-slice stands before BIRD's every start.
package timeslice
