package uk.ac.manchester.tornado.api.interpreter;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;

/** A work-item's pending copies to local memory. */
final class AsyncCopies {
    private record Copy(int[] into, int index, int value) {}

    private final ArrayDeque<List<Copy>> committed = new ArrayDeque<>();
    private List<Copy> issued = new ArrayList<>();

    void issue(int[] into, int index, int value) {
        issued.add(new Copy(into, index, value));
    }

    void commit() {
        committed.add(issued);
        issued = new ArrayList<>(issued.size());
    }

    void await(int remaining, WorkItem item) {
        while (committed.size() > remaining) {
            for (Copy copy : committed.remove()) {
                CheckedMemory.store(copy.into, copy.index, copy.value);
                item.writes(copy.into, copy.index);
            }
        }
    }
}
