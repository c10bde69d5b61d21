package uk.ac.manchester.tornado.api.common;

/** A task that a library runs: its function, its arguments, and how it uses each. */
public class LibraryTaskDescriptor {
    private String libraryName;
    private String functionName;
    private Object[] parameters;
    private Access[] access;
    private Object tuning;

    public LibraryTaskDescriptor withLibrary(String libraryName) {
        this.libraryName = libraryName;
        return this;
    }

    public LibraryTaskDescriptor withFunction(String functionName) {
        this.functionName = functionName;
        return this;
    }

    public LibraryTaskDescriptor withParameters(Object[] parameters) {
        this.parameters = parameters;
        return this;
    }

    public LibraryTaskDescriptor withAccess(Access[] access) {
        this.access = access;
        return this;
    }

    /** Sets an object that TornadoVM passes on to the library. */
    public LibraryTaskDescriptor withTuning(Object tuning) {
        this.tuning = tuning;
        return this;
    }

    public String getLibraryName() {
        return libraryName;
    }

    public String getFunctionName() {
        return functionName;
    }

    public Object[] getParameters() {
        return parameters;
    }

    public Access[] getAccess() {
        return access;
    }

    public Object getTuning() {
        return tuning;
    }
}
