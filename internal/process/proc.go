package process

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// A Stat is what Linux's /proc says of a process.
type Stat struct {
	PID, Parent int
	CPU         time.Duration // user and system
	Reaped      time.Duration // of its children that have ended
	Resident    int64         // bytes of memory
}

// tick is the unit of /proc/PID/stat: USER_HZ is 100 on every architecture.
const tick = 10 * time.Millisecond

// ReadStat reads /proc/PID/stat.
func ReadStat(pid int) (Stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Stat{}, err
	}
	// 4711 (name) S 1 …: the name may hold blanks and brackets itself.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const parent, utime, resident = 1, 11, 21 // proc(5) counts from 3
	if len(fields) <= resident {
		return Stat{}, fmt.Errorf("/proc/%d/stat is %q", pid, text)
	}
	number := func(i int) int64 {
		n, numErr := strconv.ParseInt(fields[i], 10, 64)
		if numErr != nil {
			err = numErr
		}
		return n
	}
	s := Stat{PID: pid, Parent: int(number(parent)), Resident: number(resident) * int64(os.Getpagesize())}
	s.CPU = time.Duration(number(utime)+number(utime+1)) * tick
	s.Reaped = time.Duration(number(utime+2)+number(utime+3)) * tick
	return s, err
}
