package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// settle does what has to be done once, when everything is open that only its
// owner may open: --swap, --user and --group.
func (o *options) settle(log *slog.Logger, ls *listeners) error {
	for _, flag := range o.debug {
		log.Debug("--debug changes nothing", "flag", flag)
	}
	if o.swap {
		if err := lockMemory(); err != nil {
			return fmt.Errorf("--swap: %w", err)
		}
	}
	return o.dropPrivileges(ls)
}

// dropPrivileges becomes --user and --group: all threads do. The group is the
// user's if it was not given. A private socket goes with it, and so does what --run
// runs.
func (o *options) dropPrivileges(ls *listeners) error {
	if o.user == "" && o.group == "" {
		return nil
	}
	uid, gid, groups, err := o.whoToBe()
	if err != nil {
		return err
	}
	if uid == os.Geteuid() && gid == os.Getegid() {
		return nil
	}
	if ls.private != "" {
		if err := errors.Join(o.own(ls.private), o.own(filepath.Join(ls.private, privateSocket))); err != nil {
			return err
		}
	}
	if err := errors.Join(
		os.NewSyscallError("setgroups", syscall.Setgroups(append(groups, gid))),
		os.NewSyscallError("setgid", syscall.Setgid(gid)),
		os.NewSyscallError("setuid", syscall.Setuid(uid)),
	); err != nil {
		return fmt.Errorf("--user, --group: %w", err)
	}
	return nil
}

// whoToBe is who --user and --group say.
func (o *options) whoToBe() (uid, gid int, groups []int, err error) {
	uid, gid = os.Getuid(), os.Getgid()
	if o.user != "" {
		if uid, gid, groups, err = findUser(o.user); err != nil {
			return 0, 0, nil, fmt.Errorf("--user=%s: %w", o.user, err)
		}
	}
	if o.group != "" {
		if gid, err = findGroup(o.group); err != nil {
			return 0, 0, nil, fmt.Errorf("--group=%s: %w", o.group, err)
		}
	}
	return uid, gid, groups, nil
}

// own gives a file to the user that the server will become.
func (o *options) own(path string) error {
	uid, gid, _, err := o.whoToBe()
	if err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}

// findUser finds a user by its name or number, with its groups.
func findUser(s string) (uid, gid int, groups []int, err error) {
	u, err := user.Lookup(s)
	if err != nil {
		n, nerr := strconv.ParseUint(s, 10, 31)
		if nerr != nil {
			return 0, 0, nil, err
		}
		if u, err = user.LookupId(s); err != nil {
			return int(n), os.Getgid(), nil, nil // a number that nobody has will do
		}
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, nil, err
	}
	if gid, err = strconv.Atoi(u.Gid); err != nil {
		return 0, 0, nil, err
	}
	ids, err := u.GroupIds()
	for _, id := range ids {
		if n, err := strconv.Atoi(id); err == nil {
			groups = append(groups, n)
		}
	}
	return uid, gid, groups, err
}

func findGroup(s string) (int, error) {
	g, err := user.LookupGroup(s)
	if err != nil {
		n, nerr := strconv.ParseUint(s, 10, 31)
		if nerr != nil {
			return 0, err
		}
		return int(n), nil
	}
	return strconv.Atoi(g.Gid)
}
