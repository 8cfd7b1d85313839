//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/walhook/walhook/internal/process"
	"golang.org/x/sys/unix"
)

// now reads the monotonic clock, which all processes of a machine share.
func now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // every Linux has it
	}
	return time.Duration(t.Nano())
}

// ownCPU is the CPU time of this process, user and system.
func ownCPU() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// cpuOf is the CPU time of a process; 0 if it has ended.
func cpuOf(pid int) time.Duration {
	s, err := process.ReadStat(pid)
	if err != nil {
		return 0
	}
	return s.CPU
}

// familyCPU is the CPU time of a process and its children, without some of these.
func familyCPU(pid int, without []int) time.Duration {
	head, err := process.ReadStat(pid)
	if err != nil {
		return 0
	}
	sum := head.CPU + head.Reaped
	files, _ := filepath.Glob("/proc/[0-9]*") // fails only for a malformed pattern
	for _, file := range files {
		id, err := strconv.Atoi(filepath.Base(file))
		if err != nil {
			continue
		}
		if s, err := process.ReadStat(id); err == nil && s.Parent == pid {
			sum += s.CPU
		}
	}
	for _, id := range without {
		sum -= cpuOf(id)
	}
	return sum
}

// peakRSS is the largest resident memory of a process so far, in bytes.
func peakRSS(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	return 0
}

// cpus is the number of CPUs that this process may use.
func cpus() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0
	}
	return set.Count()
}
