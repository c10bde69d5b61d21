package uk.ac.manchester.tornado.api.interpreter;

import java.lang.reflect.Array;
import java.util.Arrays;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Detects races: records which work-items read and wrote each element of shared memory. Two accesses by different
 * work-items, at least one of them a write and not both atomic, need a barrier of their group between them; between
 * groups there is none. Meanwhile groups run one after the other.
 */
final class Races {
    /** Flag of an entry: the write was atomic. */
    private static final int ATOMIC = 1;
    /** Flag: other work-items of the writer's group also wrote atomically in the same phase. */
    private static final int OTHERS = 2;
    /** Flag: work-items of other groups also wrote atomically. */
    private static final int OTHER_GROUPS = 4;

    private static final int FLAG_BITS = 3;

    /** The number of sites for which the last array is kept; a power of two. */
    private static final int SITES = 64;

    /**
     * The accesses to one array. An entry contains, from the upper bits down, the work-item's mark (its number in the
     * grid plus one), the phase (a barrier's number) and the flags; 0 means none.
     */
    private static final class History {
        final Object array;
        final long[] write;
        /** The last reader, the last different reader, and the mark of a reader of an earlier group. */
        final long[] read;

        final long[] otherRead;
        final int[] earlierGroup;

        /** Whether an element was read before the launch wrote it, and (next field) whether one was written. */
        boolean isRead;

        boolean isWritten;

        History(Object array, int length) {
            this.array = array;
            write = new long[length];
            read = new long[length];
            otherRead = new long[length];
            earlierGroup = new int[length];
        }
    }

    /** The histories of the arguments, then of the group's local arrays. */
    private History[] histories = new History[16];

    private int count;
    private final int arguments;

    /** The last array at each site, by the site's lowest bits: an access usually uses the same array as before. */
    private final Object[] recent = new Object[SITES];

    /** The histories of these arrays; null for a work-item's own array. */
    private final History[] recentHistories = new History[SITES];

    private final int groupSize;

    Races(Object[] arguments, int groupSize) {
        this.groupSize = groupSize;
        for (Object argument : arguments) {
            if (argument instanceof TornadoNativeArray array) {
                add(array, array.getSize());
            } else if (argument.getClass().isArray()) {
                add(argument, Array.getLength(argument));
            }
        }
        this.arguments = count;
    }

    private void add(Object array, int length) {
        if (find(array) == null) {
            if (count == histories.length) {
                histories = Arrays.copyOf(histories, 2 * count);
            }
            histories[count++] = new History(array, length);
        }
    }

    /** Whether an argument's earlier content was read. */
    boolean reads(Object array) {
        History history = find(array);
        return history != null && history.isRead;
    }

    boolean writes(Object array) {
        History history = find(array);
        return history != null && history.isWritten;
    }

    /** Forgets local arrays, because a new group has new local memory. */
    void clearLocals() {
        Arrays.fill(histories, arguments, count, null);
        count = arguments;
    }

    void addLocal(Object array, int length) {
        add(array, length);
    }

    @SuppressWarnings("ReferenceEquality") // two arrays are not one
    private History history(Object array, int site) {
        int at = site & SITES - 1;
        if (recent[at] != array) {
            recent[at] = array;
            recentHistories[at] = find(array);
        }
        return recentHistories[at];
    }

    @SuppressWarnings("ReferenceEquality") // two arrays are not one
    private History find(Object array) {
        for (int i = 0; i < count; i++) {
            if (histories[i].array == array) {
                return histories[i];
            }
        }
        return null;
    }

    /** @param site the access's number in its class, from 0 */
    void read(WorkItem item, Object array, int index, int site) {
        History h = history(array, site);
        if (h == null) {
            return;
        }
        int self = item.mark;
        int group = self - item.linear;
        int phase = item.group.phase;
        long now = entry(self, phase, 0);
        long last = h.read[index];
        if (last == now) {
            return; // a later write was already checked
        }
        long write = h.write[index];
        if (write == 0) {
            h.isRead = true;
        } else if (writerUnordered(write, self, group, phase)) {
            throw conflict(item, array, index, "reads", mark(write), "wrote");
        }
        if (last != 0 && mark(last) != self) {
            if (isIn(group, mark(last))) {
                h.otherRead[index] = last;
            } else {
                h.earlierGroup[index] = mark(last);
                h.otherRead[index] = 0;
            }
        }
        h.read[index] = now;
    }

    void write(WorkItem item, Object array, int index, int site, boolean atomic) {
        History h = history(array, site);
        if (h == null) {
            return;
        }
        int self = item.mark;
        int group = self - item.linear;
        int phase = item.group.phase;
        h.isWritten = true;
        long before = h.write[index];
        h.isRead |= atomic && before == 0;
        boolean bothAtomic = atomic && (before & ATOMIC) != 0;
        if (!bothAtomic && writerUnordered(before, self, group, phase)) {
            throw conflict(item, array, index, "writes", mark(before), "wrote");
        }
        int reader = h.earlierGroup[index];
        if (unordered(h.read[index], self, group, phase)) {
            reader = mark(h.read[index]);
        } else if (unordered(h.otherRead[index], self, group, phase)) {
            reader = mark(h.otherRead[index]);
        }
        if (reader != 0) {
            throw conflict(item, array, index, "writes", reader, "read");
        }
        int flags = atomic ? ATOMIC : 0;
        if (bothAtomic) {
            boolean sameGroup = isIn(group, mark(before));
            if (!sameGroup || (before & OTHER_GROUPS) != 0) {
                flags |= OTHER_GROUPS;
            }
            if (sameGroup && phase(before) == phase && (mark(before) != self || (before & OTHERS) != 0)) {
                flags |= OTHERS;
            }
        }
        h.write[index] = entry(self, phase, flags);
    }

    private static long entry(int mark, int phase, int flags) {
        return (long) mark << 32 | (long) phase << FLAG_BITS | flags;
    }

    private static int mark(long entry) {
        return (int) (entry >>> 32);
    }

    private static int phase(long entry) {
        return (int) entry >>> FLAG_BITS;
    }

    private boolean writerUnordered(long write, int self, int group, int phase) {
        return (write & OTHER_GROUPS) != 0
                || ((write & OTHERS) != 0 && phase(write) == phase)
                || unordered(write, self, group, phase);
    }

    private boolean unordered(long before, int self, int group, int phase) {
        return before != 0 && mark(before) != self && (phase(before) == phase || !isIn(group, mark(before)));
    }

    /** @param group the mark of the group's first work-item; a division per access would be slow */
    private boolean isIn(int group, int mark) {
        return mark >= group && mark - group < groupSize;
    }

    private Fault conflict(WorkItem item, Object array, int index, String now, int mark, String before) {
        Launch launch = item.group.launch;
        int other = mark - 1;
        String who = mark == item.mark
                ? "another work-item"
                : "work-item " + launch.position(other / groupSize, other % groupSize);
        return new Fault(now + " element " + index + " of " + launch.nameOf(array, item.group) + ", which " + who + " "
                + before + ", and no barrier is between them");
    }
}
