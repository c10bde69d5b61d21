package uk.ac.manchester.tornado.api.interpreter;

import java.lang.reflect.Array;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Who read and wrote each element of the memory that work-items share. Two accesses by different work-items, at least
 * one a write and not both atomic, have to have a barrier of their group between them; between groups there is none.
 * Groups run one after the other while this is kept.
 */
final class Races {
    private static final int NOBODY = -1;

    /** The accesses of one array; a work-item's number counts through the whole grid, a phase is a barrier's number. */
    private static final class History {
        final Object array;
        final int[] writer;
        final int[] writePhase;
        final boolean[] atomic;
        /**
         * Whether others than the writer wrote atomically too: some of its group in the same phase, or of other groups.
         */
        final boolean[] others;

        final boolean[] otherGroups;
        /** The last reader, the last one that is another, and one of an earlier group. */
        final int[] reader;

        final int[] readPhase;
        final int[] otherReader;
        final int[] otherPhase;
        final int[] earlierGroup;

        /** Whether an element was read that the launch had not written, and whether one was written. */
        boolean isRead;

        boolean isWritten;

        History(Object array, int length) {
            this.array = array;
            writer = filled(length);
            writePhase = new int[length];
            atomic = new boolean[length];
            others = new boolean[length];
            otherGroups = new boolean[length];
            reader = filled(length);
            readPhase = new int[length];
            otherReader = filled(length);
            otherPhase = new int[length];
            earlierGroup = filled(length);
        }

        private static int[] filled(int length) {
            int[] array = new int[length];
            Arrays.fill(array, NOBODY);
            return array;
        }
    }

    /** Of the arguments, then of the group's local arrays; so few that looking through them is the quickest. */
    private final List<History> histories = new ArrayList<>();

    /** The one found last: loops go through one array. */
    private History last;

    private final int arguments;
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
        this.arguments = histories.size();
    }

    private void add(Object array, int length) {
        if (history(array) == null) {
            histories.add(new History(array, length));
        }
    }

    /** Whether what was in an argument before was read. */
    boolean reads(Object array) {
        History history = history(array);
        return history != null && history.isRead;
    }

    boolean writes(Object array) {
        History history = history(array);
        return history != null && history.isWritten;
    }

    /** A new group has new local memory. */
    void clearLocals() {
        histories.subList(arguments, histories.size()).clear();
        last = null;
    }

    void addLocal(Object array, int length) {
        add(array, length);
    }

    @SuppressWarnings("ReferenceEquality") // two arrays are not one
    private History history(Object array) {
        if (last != null && last.array == array) {
            return last;
        }
        for (int i = 0; i < histories.size(); i++) {
            if (histories.get(i).array == array) {
                last = histories.get(i);
                return last;
            }
        }
        return null;
    }

    void read(WorkItem item, Object array, int index) {
        History h = history(array);
        if (h == null) {
            return;
        }
        h.isRead |= h.writer[index] == NOBODY;
        int self = number(item);
        int group = self - item.linear;
        int phase = item.group.phase;
        if (writerUnordered(h, index, self, group, phase)) {
            throw conflict(item, array, index, "reads", h.writer[index], "wrote");
        }
        int last = h.reader[index];
        if (last != self) {
            if (last != NOBODY && !isIn(group, last)) {
                h.earlierGroup[index] = last;
                h.otherReader[index] = NOBODY;
            } else {
                h.otherReader[index] = last;
                h.otherPhase[index] = h.readPhase[index];
            }
            h.reader[index] = self;
        }
        h.readPhase[index] = phase;
    }

    void write(WorkItem item, Object array, int index, boolean atomic) {
        History h = history(array);
        if (h == null) {
            return;
        }
        h.isRead |= atomic && h.writer[index] == NOBODY;
        h.isWritten = true;
        int self = number(item);
        int group = self - item.linear;
        int phase = item.group.phase;
        boolean bothAtomic = atomic && h.atomic[index];
        if (!bothAtomic && writerUnordered(h, index, self, group, phase)) {
            throw conflict(item, array, index, "writes", h.writer[index], "wrote");
        }
        int reader = NOBODY;
        if (unordered(h.reader[index], h.readPhase[index], self, group, phase)) {
            reader = h.reader[index];
        } else if (unordered(h.otherReader[index], h.otherPhase[index], self, group, phase)) {
            reader = h.otherReader[index];
        } else if (h.earlierGroup[index] != NOBODY) {
            reader = h.earlierGroup[index];
        }
        if (reader != NOBODY) {
            throw conflict(item, array, index, "writes", reader, "read");
        }
        boolean known = bothAtomic && h.writer[index] != NOBODY;
        boolean sameGroup = known && isIn(group, h.writer[index]);
        h.otherGroups[index] = known && (h.otherGroups[index] || !sameGroup);
        h.others[index] = sameGroup && h.writePhase[index] == phase && (h.others[index] || h.writer[index] != self);
        h.writer[index] = self;
        h.writePhase[index] = phase;
        h.atomic[index] = atomic;
    }

    private boolean writerUnordered(History h, int index, int self, int group, int phase) {
        return h.otherGroups[index]
                || (h.others[index] && h.writePhase[index] == phase)
                || unordered(h.writer[index], h.writePhase[index], self, group, phase);
    }

    private int number(WorkItem item) {
        return Math.toIntExact(item.group.index * groupSize + item.linear);
    }

    private boolean unordered(int before, int beforePhase, int self, int group, int phase) {
        if (before == NOBODY || before == self) {
            return false;
        }
        return beforePhase == phase || !isIn(group, before);
    }

    /** @param group the number of its first work-item; a division for each access would be slow */
    private boolean isIn(int group, int number) {
        return number >= group && number - group < groupSize;
    }

    private Fault conflict(WorkItem item, Object array, int index, String now, int other, String before) {
        Launch launch = item.group.launch;
        String who = other == number(item)
                ? "another work-item"
                : "work-item " + launch.position(other / groupSize, other % groupSize);
        return new Fault(now + " element " + index + " of " + launch.nameOf(array, item.group) + ", which " + who + " "
                + before + ", and no barrier is between them");
    }
}
