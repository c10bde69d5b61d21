package uk.ac.manchester.tornado.api.interpreter;

import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;
import uk.ac.manchester.tornado.api.exceptions.TornadoTaskRuntimeException;

/** A task graph's declarations. */
public final class Graph {
    /** An array and when it is copied. */
    record Transfer(int mode, Object array) {}

    /** An array taken over from a graph; null means the previously executed graph. */
    record Consumed(String graph, Object array) {}

    private final String name;
    final List<Transfer> toDevice = new ArrayList<>();
    final List<Consumed> consumed = new ArrayList<>();
    final List<Task> tasks = new ArrayList<>();
    final List<Transfer> toHost = new ArrayList<>();

    public Graph(String name) {
        this.name = name;
    }

    public String name() {
        return name;
    }

    public Graph copy() {
        Graph copy = new Graph(name);
        copy.toDevice.addAll(toDevice);
        copy.consumed.addAll(consumed);
        copy.tasks.addAll(tasks);
        copy.toHost.addAll(toHost);
        return copy;
    }

    public void transferToDevice(int mode, Object... arrays) {
        if (mode != DataTransferMode.FIRST_EXECUTION && mode != DataTransferMode.EVERY_EXECUTION) {
            throw new TornadoRuntimeException("graph " + name
                    + ": transferToDevice: mode: expected FIRST_EXECUTION (0) or EVERY_EXECUTION (1), got " + mode);
        }
        for (Object array : arrays) {
            if (!(array instanceof Number)) {
                DeviceMemory.checkSupported(array, "graph " + name + ": transferToDevice");
                toDevice.add(new Transfer(mode, array));
            }
        }
    }

    public void consumeFromDevice(String graph, Object... arrays) {
        for (Object array : arrays) {
            DeviceMemory.checkSupported(array, "graph " + name + ": consumeFromDevice");
            consumed.add(new Consumed(graph, array));
        }
    }

    public void transferToHost(int mode, Object... arrays) {
        if (mode != DataTransferMode.EVERY_EXECUTION && mode != DataTransferMode.UNDER_DEMAND) {
            throw new TornadoRuntimeException("graph " + name
                    + ": transferToHost: mode: expected EVERY_EXECUTION (1) or UNDER_DEMAND (2), got " + mode);
        }
        for (Object array : arrays) {
            DeviceMemory.checkSupported(array, "graph " + name + ": transferToHost");
            toHost.add(new Transfer(mode, array));
        }
    }

    /** Whether it is in a transfer, in either direction, or taken over from another graph. */
    boolean names(Object array) {
        return toDevice.stream().anyMatch(transfer -> transfer.array == array)
                || toHost.stream().anyMatch(transfer -> transfer.array == array)
                || consumed.stream().anyMatch(taken -> taken.array == array);
    }

    public void persistOnDevice(Object... arrays) {
        transferToHost(DataTransferMode.UNDER_DEMAND, arrays);
    }

    /** Adds a task: code is the lambda of its declaration, body calls that lambda with an array of arguments. */
    public void task(String id, Object code, Consumer<Object[]> body, Object... arguments) {
        if (code == null) {
            throw new TornadoTaskRuntimeException("graph " + name + ", task " + id + ": the method is null");
        }
        if (tasks.stream().anyMatch(task -> task.id().equals(id))) {
            throw new TornadoTaskRuntimeException("graph " + name + " has a task " + id + " already");
        }
        for (int i = 0; i < arguments.length; i++) {
            DeviceMemory.checkArgument(arguments[i], "graph " + name + ", task " + id + ", argument " + (i + 1));
        }
        tasks.add(new Task(id, code, body, arguments.clone()));
    }
}
