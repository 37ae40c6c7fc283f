# Comments as doxygen reads them. In the headers they are plain: `//` before a declaration or behind it.
/inline namespace GROUPNORM_STD|namespace GROUPNORM_STD$/d
# Indented text is code in both; of a list of declarations it must not begin a list.
s#^( *)//( |$)#\1///\2#
s#([;,{] +)// #\1///< #
s#^( *)/\* #\1/** #
s#([;,] +)/\* #\1/**< #
# What doxygen would take for HTML or a command.
/^ *(\/\/\/|\/\*\*| \*)/s#<([a-z])#\\<\1#g
