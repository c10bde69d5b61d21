@echo off
rem moe COMMAND [ARGUMENTS], for Windows: runs moe.jar, beside this file or built on first use. See moe.
setlocal
set "jar=%~dp0moe.jar"
if not exist "%jar%" set "jar=%~dp0src\app\target\moe.jar"
if exist "%jar%" goto run
echo moe: building, once; what it needs is downloaded (some 30 MB)>&2
call "%~dp0mvnw.cmd" -q -f "%~dp0pom.xml" -pl src/app -am -Dmaven.test.skip=true -Dmaven.javadoc.skip=true package 1>&2
if errorlevel 1 exit /b 2
:run
set "java=java"
if defined JAVA_HOME set "java=%JAVA_HOME%\bin\java"
"%java%" -jar "%jar%" %*
exit /b %errorlevel%
