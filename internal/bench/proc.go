//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// now is the monotonic clock that all processes of this machine share.
func now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // every Linux has it
	}
	return time.Duration(t.Nano())
}

// ownCPU is what this process has used, user and system.
func ownCPU() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// A stat is what /proc says of a process.
type stat struct {
	pid, parent int
	cpu         time.Duration // user and system
	reaped      time.Duration // of its children that have ended
}

// userTick is the unit of /proc/PID/stat: USER_HZ is 100 on every architecture.
const userTick = 10 * time.Millisecond

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// 4711 (name) S 1 …: the name may hold blanks and brackets itself.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const state, parent, utime = 0, 1, 11 // proc(5) counts from 3
	if len(fields) < utime+4 {
		return stat{}, fmt.Errorf("cannot read /proc/%d/stat", pid)
	}
	number := func(i int) int64 {
		n, numErr := strconv.ParseInt(fields[i], 10, 64)
		if numErr != nil {
			err = numErr
		}
		return n
	}
	s := stat{pid: pid, parent: int(number(parent))}
	s.cpu = time.Duration(number(utime)+number(utime+1)) * userTick
	s.reaped = time.Duration(number(utime+2)+number(utime+3)) * userTick
	return s, err
}

// cpuOf is what a process has used; 0 where it has ended.
func cpuOf(pid int) time.Duration {
	s, err := readStat(pid)
	if err != nil {
		return 0
	}
	return s.cpu
}

// familyCPU is what a process and all its children have used, but not those of
// the children that are left out.
func familyCPU(pid int, without []int) time.Duration {
	head, err := readStat(pid)
	if err != nil {
		return 0
	}
	sum := head.cpu + head.reaped
	files, _ := filepath.Glob("/proc/[0-9]*") // fails only for a malformed pattern
	for _, file := range files {
		id, err := strconv.Atoi(filepath.Base(file))
		if err != nil {
			continue
		}
		if s, err := readStat(id); err == nil && s.parent == pid {
			sum += s.cpu
		}
	}
	for _, id := range without {
		sum -= cpuOf(id)
	}
	return sum
}

// peakRSS is the most memory that a process has had resident, in bytes.
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

// cpus is how many CPUs this process may use.
func cpus() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0
	}
	return set.Count()
}
